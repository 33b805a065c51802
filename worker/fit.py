"""One fit job from claim to publication: two short transactions, and one per finished chunk between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import structlog
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer

from alignez_core.embeddings import LM_ENCODER, middle_layer
from alignez_core.engines.base import Engine
from alignez_core.errors import FitCancelled
from alignez_core.fit import FitEvent, FittedProfile, PairChunk, fit_profile
from alignez_core.fit_config import FitConfig, FitQuery, FitSpec, GivenPair
from alignez_core.prompts import Persona
from profiles import jobs
from profiles.errors import DatabaseUnavailable, JobCancelled, LeaseLost
from profiles.models import QuerySource
from profiles.repository.fits import StoredDirections
from profiles.service import register_base_model
from profiles.spec import DEFAULT_NEIGHBORS, own_queries
from profiles.uow import SessionFactory, UnitOfWork
from worker.engine import LoadedEngine
from worker.failures import HandBack, TimeLimitExceeded, failure_of
from worker.lease import HeldLease
from worker.metrics import WorkerMetrics
from worker.traced_engine import TracedEngine

log = structlog.get_logger("worker")

T = TypeVar("T")


@dataclass(frozen=True)
class FitOptions:
    """What of the settings one fit needs; see `WorkerSettings`."""

    worker: str
    lease_s: float
    time_limit_s: float
    max_failures: int
    database_patience_s: float
    store_rows: int


class FitRunner:
    """Runs fit jobs on one engine.

    Args:
        stopping: whether the process is shutting down; asked between two batches.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        loaded: LoadedEngine,
        options: FitOptions,
        stopping: Callable[[], bool] = lambda: False,
        metrics: WorkerMetrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._metrics = metrics or WorkerMetrics()
        self._tracer = tracer or NoOpTracer()
        self._sessions = sessions
        self._loaded = loaded
        self._options = options
        self._stopping = stopping

    def run(self, job_id: UUID) -> str:
        """Does the job if it is there to be done; returns how it went, in one word, for the log.

        "skipped": finished, running elsewhere or not due. "succeeded", "cancelled", "failed", "retry", "handed_back".
        "lost": another attempt owns it. Never raises for anything that a job can do wrong.

        Raises: DatabaseUnavailable: before the claim; the job stays queued.
        """
        if self._stopping():
            return "skipped"
        with UnitOfWork.open(self._sessions) as uow:
            claim = jobs.claim(uow, job_id, self._options.worker, self._options.lease_s)
        if claim is None:
            return "skipped"
        ids: dict[str, str | int] = {
            "job_id": str(job_id),
            "request_id": claim.origin.request_id or "",
            "attempt": claim.attempt,
        }
        named: dict[str, str | int] = {f"alignez.{name}": value for name, value in ids.items()}
        with (
            structlog.contextvars.bound_contextvars(**ids),
            self._tracer.start_as_current_span("fit", claim.origin.context, SpanKind.CONSUMER, named) as span,
        ):
            outcome = self._run_leased(claim, span)
        return outcome

    def _run_leased(self, claim: jobs.Claim, span: Span) -> str:
        self._metrics.busy.set(1)
        log.info("fit_began", profile=str(claim.profile_id))
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
        self._metrics.attempts.labels(outcome).inc()
        span.set_attribute("alignez.outcome", outcome)
        if outcome in ("failed", "retry", "lost"):
            span.set_status(StatusCode.ERROR, outcome)
        log.info("fit_ended", outcome=outcome)
        return outcome

    def _run_claimed(self, claim: jobs.Claim, lease: HeldLease) -> str:
        try:
            began = time.monotonic()
            engine = TracedEngine(self._loaded.engine, self._tracer)
            fitted = _Fit(self._sessions, self._loaded, engine, self._options, claim, lease, self._stopping).run()
            self._count(fitted, time.monotonic() - began)
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
            log.exception("fit_failed", code=failure.code)
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

    def _count(self, fitted: FittedProfile, seconds: float) -> None:
        last = fitted.diagnostics["last_attempt"]
        self._metrics.seconds.observe(seconds)
        self._metrics.tokens.inc(last["tokens_generated"])
        self._metrics.quality.labels(fitted.quality).inc()
        for stage, took in last["seconds"].items():
            self._metrics.stage_seconds.labels(stage).observe(took)

    def _patiently(self, act: Callable[[UnitOfWork], T]) -> T:
        return patiently(self._sessions, self._options.database_patience_s, act)


class _Fit:
    """One claimed job on its way through `fit_profile`."""

    def __init__(
        self,
        sessions: SessionFactory,
        loaded: LoadedEngine,
        engine: Engine,
        options: FitOptions,
        claim: jobs.Claim,
        lease: HeldLease,
        stopping: Callable[[], bool],
    ) -> None:
        self._sessions = sessions
        self._loaded = loaded
        self._engine = engine
        self._options = options
        self._claim = claim
        self._lease = lease
        self._stopping = stopping
        self._deadline = time.monotonic() + options.time_limit_s

    def run(self) -> FittedProfile:
        self._do(self._bind_model)
        queries = self._do(self._queries)
        config = FitConfig.from_dict(_settings(self._claim.spec, queries))
        spec = _fit_spec(self._claim, queries, config)
        resume = self._do(lambda uow: _stored_chunks(uow, self._claim, queries))
        fitted = fit_profile(self._engine, spec, self._on_event, resume)
        self._store(fitted)
        version = self._fitted_version(fitted)
        self._do(lambda uow: jobs.publish(uow, self._claim, version))
        return fitted

    def _bind_model(self, uow: UnitOfWork) -> None:
        jobs.bind_model(uow, self._claim, register_base_model(uow, self._loaded.facts))

    def _queries(self, uow: UnitOfWork) -> list[jobs.QueryRecord]:
        """The version's queries as they stand; an attempt before may have stored them, and its bank may differ."""
        stored = jobs.load_queries(uow, self._claim)
        if stored:
            return stored
        jobs.save_queries(uow, self._claim, _asked_queries(self._claim, self._loaded.query_bank))
        return jobs.load_queries(uow, self._claim)

    def _on_event(self, event: FitEvent) -> None:
        """Between two batches: stop if somebody wants it, then write down what is finished."""
        self._check()
        self._do(lambda uow: self._record(uow, event))

    def _record(self, uow: UnitOfWork, event: FitEvent) -> None:
        chunk = event.chunk
        if chunk is None:
            pass
        elif chunk.kind == "queries":
            found = zip(chunk.indices, chunk.help, strict=True)
            invented = [jobs.QueryRecord(position, text, QuerySource.INVENTED) for position, text in found]
            jobs.save_queries(uow, self._claim, invented)
        else:
            jobs.save_chunk(uow, self._claim, jobs.TextChunk(chunk.kind, chunk.indices, chunk.help, chunk.harm))
        jobs.record_progress(uow, self._claim, event.stage, event.done, event.total)

    def _store(self, fitted: FittedProfile) -> None:
        """Writes given pairs and all vectors, some rows per transaction, so that publishing is short."""
        given = [pair for pair in fitted.pairs if pair.origin == "pair"]
        answers = jobs.TextChunk(
            "responses",
            tuple(pair.index for pair in given),
            tuple(pair.help_response or "" for pair in given),
            tuple(pair.harm_response or "" for pair in given),
        )
        self._do(lambda uow: jobs.save_chunk(uow, self._claim, answers))
        positions = [pair.index for pair in fitted.pairs]
        for start in range(0, len(positions), self._options.store_rows):
            self._check()
            self._store_rows(fitted, positions, slice(start, start + self._options.store_rows))

    def _store_rows(self, fitted: FittedProfile, positions: Sequence[int], rows: slice) -> None:
        sides = {name: getattr(fitted, name)[rows].numpy() for name in ("help", "harm", "plain")}
        embeddings = fitted.embeddings[rows].numpy()
        self._do(
            lambda uow: jobs.save_representations(uow, self._claim, positions[rows], fitted.layers, embeddings, sides)
        )

    def _fitted_version(self, fitted: FittedProfile) -> jobs.FittedVersion:
        config = fitted.spec.config
        transport = config.method == "transport"
        return jobs.FittedVersion(
            config=config.to_dict(),
            layers=fitted.layers,
            directions=StoredDirections(
                layers=fitted.layers,
                theta_help=fitted.theta_help.numpy(),
                theta_harm=fitted.theta_harm.numpy(),
                theta=fitted.theta.numpy() if transport else None,
                tau=fitted.tau.numpy() if transport else None,
            ),
            diagnostics=fitted.diagnostics,
            quality=fitted.quality,
            quality_reasons=fitted.quality_reasons,
            sha256=fitted.sha256,
            embedding_layer=middle_layer(self._loaded.facts.n_layers) if config.query_encoder == LM_ENCODER else None,
            tokens=int(fitted.diagnostics["last_attempt"]["tokens_generated"]),
            dropped=fitted.dropped,
        )

    def _check(self) -> None:
        """Raises: LeaseLost, JobCancelled, HandBack, TimeLimitExceeded."""
        self._lease.check()
        if self._stopping():
            raise HandBack
        if time.monotonic() > self._deadline:
            raise TimeLimitExceeded(self._options.time_limit_s)

    def _do(self, act: Callable[[UnitOfWork], T]) -> T:
        return patiently(self._sessions, self._options.database_patience_s, act, self._lease.check)


def patiently(
    sessions: SessionFactory,
    patience_s: float,
    act: Callable[[UnitOfWork], T],
    check: Callable[[], None] = lambda: None,
) -> T:
    """`act` in a transaction of its own, tried again while the database is away, `patience_s` at most.

    `act` must be safe to repeat: a connection that breaks during COMMIT leaves open whether it happened.

    Args:
        check: called before each further try; may raise.
    Raises: DatabaseUnavailable: still away.
    """
    deadline = time.monotonic() + patience_s
    pause = 0.1
    while True:
        try:
            with UnitOfWork.open(sessions) as uow:
                return act(uow)
        except DatabaseUnavailable:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
            check()


def _settings(spec: Mapping[str, Any], queries: Sequence[jobs.QueryRecord]) -> dict[str, Any]:
    """The fit's settings; a persona alone is fitted on the query bank plus some queries of the model's own.

    A K that the caller left open is resolved here, where N is known: a later version with other queries then gets
    its own. Invented queries that an earlier attempt stored are counted as asked for, so that every attempt has one K.
    """
    own = own_queries(spec)
    given = sum(query.source is not QuerySource.INVENTED for query in queries)
    return {"own_queries": own, "neighbors": min(DEFAULT_NEIGHBORS, given + own), **spec["fit"]}


def _asked_queries(claim: jobs.Claim, bank: Sequence[str]) -> list[jobs.QueryRecord]:
    """The spec's queries, then its pairs' queries; the bank when it names neither."""
    asked = [
        jobs.QueryRecord(i, query["text"], QuerySource.GIVEN, query["preferred"], query["dispreferred"])
        for i, query in enumerate(claim.spec["queries"])
    ]
    first = len(asked)
    asked += [
        jobs.QueryRecord(first + i, pair["query"], QuerySource.PAIR) for i, pair in enumerate(claim.spec["pairs"])
    ]
    return asked or [jobs.QueryRecord(i, text, QuerySource.BANK) for i, text in enumerate(bank)]


def _fit_spec(claim: jobs.Claim, queries: Sequence[jobs.QueryRecord], config: FitConfig) -> FitSpec:
    given = {name: value for name, value in (claim.spec["persona"] or {}).items() if value is not None}
    texts = [q for q in queries if q.source in (QuerySource.GIVEN, QuerySource.BANK)]
    return FitSpec(
        persona=Persona(**given),
        queries=tuple(FitQuery(q.text, q.preferred, q.dispreferred) for q in texts),
        pairs=tuple(GivenPair(p["query"], p["preferred"], p["dispreferred"]) for p in claim.spec["pairs"]),
        config=config,
    )


def _stored_chunks(uow: UnitOfWork, claim: jobs.Claim, queries: Sequence[jobs.QueryRecord]) -> list[PairChunk]:
    """What earlier attempts finished, as the core takes it."""
    invented = [query for query in queries if query.source is QuerySource.INVENTED]
    chunks = [PairChunk(c.kind, c.positions, c.help, c.harm) for c in jobs.load_chunks(uow, claim)]
    if invented:
        texts = tuple(query.text for query in invented)
        chunks.insert(0, PairChunk("queries", tuple(query.position for query in invented), texts))
    return chunks
