"""Runs jobs on one engine: claim, lease, work by kind of job, and a final state for every outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import structlog
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer

from alignez_core.errors import FitCancelled, JudgeUnavailable
from profiles.errors import DatabaseUnavailable, JobCancelled, LeaseLost
from profiles.fitting import claims as jobs
from profiles.models import JobKind
from profiles.uow import CALLED_FROM, PLATFORM, CalledFrom, SessionFactory, UnitOfWork
from worker.engine import LoadedEngine
from worker.evaluate import run_evaluation
from worker.failures import HandBack, failure_of
from worker.fit import run_fit
from worker.job import ClaimedJob, JobOptions, patiently
from worker.judges import JudgeMaker
from worker.lease import HeldLease
from worker.metrics import WorkerMetrics
from worker.traced_engine import TracedEngine

log = structlog.get_logger("worker")

T = TypeVar("T")


def only_self(name: str) -> None:
    """The judges of a worker without judge settings. Raises: JudgeUnavailable: the name is not "self"."""
    if name != "self":
        raise JudgeUnavailable(f"the judge {name!r} is not offered here")


class JobRunner:
    """Runs fit and evaluation jobs.

    Args:
        stopping: returns True when the process shuts down; called between two batches.
        make_judge: see `worker.judges`.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        loaded: LoadedEngine,
        options: JobOptions,
        stopping: Callable[[], bool] = lambda: False,
        metrics: WorkerMetrics | None = None,
        tracer: Tracer | None = None,
        make_judge: JudgeMaker = only_self,
    ) -> None:
        self._metrics = metrics or WorkerMetrics()
        self._tracer = tracer or NoOpTracer()
        self._sessions = sessions
        self._loaded = loaded
        self._options = options
        self._stopping = stopping
        self._make_judge = make_judge

    def run(self, job_id: UUID) -> str:
        """Runs the job that is next in turn; returns its outcome.

        Args:
            job_id: id in the message, which is only a hint. The message's own job may not be next, because one tenant's
                many jobs must not delay another's few.
        Returns: "succeeded", "cancelled", "failed", "retry", "handed_back", "skipped" (no job is due) or "lost"
            (another attempt owns the job). Errors of a job are not raised.
        Raises: DatabaseUnavailable: before the claim; the job stays queued.
        """
        if self._stopping():
            return "skipped"
        with UnitOfWork.open(self._sessions, PLATFORM) as uow:
            claim = jobs.claim_next(uow, self._options.worker, self._options.lease_s)
        if claim is None:
            log.debug("nothing_to_do", message=str(job_id))
            return "skipped"
        CALLED_FROM.set(CalledFrom(claim.origin.request_id or ""))
        ids: dict[str, str | int] = {
            "job_id": str(claim.job_id),
            "request_id": claim.origin.request_id or "",
            "attempt": claim.attempt,
        }
        named: dict[str, str | int] = {f"alignez.{name}": value for name, value in ids.items()}
        with (
            structlog.contextvars.bound_contextvars(**ids),
            self._tracer.start_as_current_span(claim.kind, claim.origin.context, SpanKind.CONSUMER, named) as span,
        ):
            return self._run_leased(claim, span)

    def _run_leased(self, claim: jobs.Claim, span: Span) -> str:
        self._metrics.busy.set(1)
        log.info(f"{claim.kind}_began", profile=str(claim.profile_id))
        try:
            with HeldLease(self._sessions, claim, self._options.lease_s) as lease:
                outcome = self._run_claimed(claim, lease)
        except LeaseLost as error:
            log.warning("lease_lost", reason=str(error))
            outcome = "lost"
        except DatabaseUnavailable as error:
            # The job's end cannot be stored. When the lease ends, the relay's sweep queues the job again.
            log.error("left_to_the_sweep", reason=str(error))
            outcome = "lost"
        finally:
            self._metrics.busy.set(0)
        self._metrics.ended(claim.kind, outcome)
        span.set_attribute("alignez.outcome", outcome)
        if outcome in ("failed", "retry", "lost"):
            span.set_status(StatusCode.ERROR, outcome)
        log.info(f"{claim.kind}_ended", outcome=outcome)
        return outcome

    def _run_claimed(self, claim: jobs.Claim, lease: HeldLease) -> str:
        engine = TracedEngine(self._loaded.engine, self._tracer)
        job = ClaimedJob(self._sessions, self._loaded, engine, self._options, claim, lease, self._stopping)
        try:
            return self._outcome(claim, job)
        finally:
            self._metrics.tokens.inc(engine.generated)
            job.count_rest()

    def _outcome(self, claim: jobs.Claim, job: ClaimedJob) -> str:
        try:
            self._work(job)
            return "succeeded"
        except LeaseLost:
            raise
        except (JobCancelled, FitCancelled):
            self._patiently(claim, lambda uow: jobs.acknowledge_cancel(uow, claim))
            return "cancelled"
        except HandBack:
            self._patiently(claim, lambda uow: jobs.hand_back(uow, claim))
            return "handed_back"
        except Exception as error:  # after any error, the job must get a final state
            failure = failure_of(error)
            log.exception(f"{claim.kind}_failed", code=failure.code)
            again = self._patiently(
                claim,
                lambda uow: jobs.fail(
                    uow,
                    claim,
                    failure.code,
                    failure.message,
                    retryable=failure.retryable,
                    max_failures=self._options.max_failures,
                ),
            )
            return "retry" if again else "failed"

    def _work(self, job: ClaimedJob) -> None:
        began = time.monotonic()
        if job.claim.kind is JobKind.EVALUATE:
            run_evaluation(job, self._make_judge)
            self._metrics.evaluation_seconds.observe(time.monotonic() - began)
            return
        fitted = run_fit(job, self._make_judge)
        self._metrics.seconds.observe(time.monotonic() - began)
        self._metrics.quality.labels(fitted.quality).inc()
        for stage, seconds in fitted.diagnostics["last_attempt"]["seconds"].items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)

    def _patiently(self, claim: jobs.Claim, act: Callable[[UnitOfWork], T]) -> T:
        return patiently(self._sessions, claim.tenant_id, self._options.database_patience_s, act)
