"""Runs jobs on one engine: claim, lease, work by the job's kind, and an end with a code whatever went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import structlog
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer

from alignez_core.errors import FitCancelled, JudgeUnavailable
from alignez_core.fit import FittedProfile
from profiles.errors import DatabaseUnavailable, JobCancelled, LeaseLost
from profiles.fitting import claims as jobs
from profiles.models import JobKind
from profiles.uow import SessionFactory, UnitOfWork
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
    """The judges of a worker without judge settings. Raises: JudgeUnavailable: a judge other than the model itself."""
    if name != "self":
        raise JudgeUnavailable(f"the judge {name!r} is not offered here")


class JobRunner:
    """Runs fit and evaluation jobs.

    Args:
        stopping: whether the process is shutting down; asked between two batches.
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
        """Runs the next job; returns its outcome in one word, for the log.

        Args:
            job_id: of the message, which is only a hint that there is something to do. The broker's order is that of
                asking, and one tenant's many jobs must not hold up another's few.

        "skipped": no job is due. "succeeded", "cancelled", "failed", "retry", "handed_back".
        "lost": another attempt owns it. Never raises for anything that a job can do wrong.

        Raises: DatabaseUnavailable: before the claim; the job stays queued.
        """
        if self._stopping():
            return "skipped"
        with UnitOfWork.open(self._sessions) as uow:
            claim = jobs.claim_next(uow, self._options.worker, self._options.lease_s)
        if claim is None:
            log.debug("nothing_to_do", message=str(job_id))
            return "skipped"
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
            outcome = self._run_leased(claim, span)
        return outcome

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
            # Nothing can be written; the lease will run out and the relay's sweep will queue the job again.
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
            self._patiently(lambda uow: jobs.acknowledge_cancel(uow, claim))
            return "cancelled"
        except HandBack:
            self._patiently(lambda uow: jobs.hand_back(uow, claim))
            return "handed_back"
        except Exception as error:  # the job must end with a code, whatever went wrong
            failure = failure_of(error)
            log.exception(f"{claim.kind}_failed", code=failure.code)
            again = self._patiently(
                lambda uow: jobs.fail(
                    uow,
                    claim,
                    failure.code,
                    failure.message,
                    retryable=failure.retryable,
                    max_failures=self._options.max_failures,
                )
            )
            return "retry" if again else "failed"

    def _work(self, job: ClaimedJob) -> None:
        began = time.monotonic()
        if job.claim.kind is JobKind.EVALUATE:
            run_evaluation(job, self._make_judge)
            self._metrics.evaluation_seconds.observe(time.monotonic() - began)
            return
        self._count(run_fit(job, self._make_judge), time.monotonic() - began)

    def _count(self, fitted: FittedProfile, seconds: float) -> None:
        last = fitted.diagnostics["last_attempt"]
        self._metrics.seconds.observe(seconds)
        self._metrics.quality.labels(fitted.quality).inc()
        for stage, took in last["seconds"].items():
            self._metrics.stage_seconds.labels(stage).observe(took)

    def _patiently(self, act: Callable[[UnitOfWork], T]) -> T:
        return patiently(self._sessions, self._options.database_patience_s, act)
