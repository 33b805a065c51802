"""A claimed job: its transactions, its progress, and the checks between two batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import structlog

from alignez_core.fit_run import OWN_QUERIES, FitEvent, TextChunk
from profiles.errors import DatabaseUnavailable
from profiles.fitting import claims as jobs
from profiles.fitting import content
from profiles.service import register_base_model
from profiles.uow import SessionFactory, UnitOfWork
from worker.engine import LoadedEngine
from worker.failures import HandBack, TimeLimitExceeded
from worker.lease import HeldLease
from worker.traced_engine import TracedEngine

log = structlog.get_logger("worker")

T = TypeVar("T")

#: Kind of the stored texts of a job's query bank. The worker of another attempt may have another bank.
_BANK = "bank"


@dataclass(frozen=True)
class JobOptions:
    """The settings of a job; see `WorkerSettings`."""

    worker: str
    lease_s: float
    time_limit_s: float
    max_failures: int
    database_patience_s: float
    store_rows: int


class ClaimedJob:
    """The common state of fits and evaluations.

    Args:
        engine: the engine of `loaded`, wrapped for this job. stopping: returns True when the process shuts down.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        loaded: LoadedEngine,
        engine: TracedEngine,
        options: JobOptions,
        claim: jobs.Claim,
        lease: HeldLease,
        stopping: Callable[[], bool],
    ) -> None:
        self.claim = claim
        self.loaded = loaded
        self.engine = engine
        self.options = options
        self._sessions = sessions
        self._lease = lease
        self._stopping = stopping
        self._deadline = time.monotonic() + options.time_limit_s
        self._counted = 0

    def check(self) -> None:
        """Checks whether the job may go on. Raises: LeaseLost, JobCancelled, HandBack, TimeLimitExceeded."""
        self._lease.check()
        if self._stopping():
            raise HandBack
        if time.monotonic() > self._deadline:
            raise TimeLimitExceeded(self.options.time_limit_s)

    def do(self, act: Callable[[UnitOfWork], T]) -> T:
        """Calls `patiently` for as long as the lease is held."""
        return patiently(self._sessions, self.claim.tenant_id, self.options.database_patience_s, act, self._lease.check)

    def do_counting(self, act: Callable[[UnitOfWork], T]) -> T:
        """Calls `do`, and adds the tokens generated since the last call to the usage, in the same transaction."""
        generated = self.engine.generated

        def both(uow: UnitOfWork) -> T:
            jobs.count_tokens(uow, self.claim, generated - self._counted)
            return act(uow)

        result = self.do(both)
        self._counted = generated
        return result

    def count_rest(self) -> None:
        """Adds uncounted tokens to the usage, even if the job now belongs to another worker. Does not retry."""
        rest = self.engine.generated - self._counted
        try:
            with UnitOfWork.open(self._sessions, self.claim.tenant_id) as uow:
                jobs.count_tokens(uow, self.claim, rest)
        except DatabaseUnavailable as error:
            log.warning("usage_lost", fit_tokens=rest, reason=str(error))

    def bind_model(self) -> None:
        """Binds the version to the engine's model. Raises: ModelConflict: it is bound to another one."""
        self.do(lambda uow: jobs.bind_model(uow, self.claim, register_base_model(uow, self.loaded.facts)))

    def bank(self) -> tuple[str, ...]:
        """The query bank of the job's first attempt, which all attempts use."""

        def keep(uow: UnitOfWork) -> tuple[str, ...]:
            known = content.load_texts(uow, self.claim).get(_BANK)
            if known is None:
                content.save_texts(uow, self.claim, _BANK, dict(enumerate(self.loaded.query_bank)))
                return self.loaded.query_bank
            return tuple(known[i] for i in sorted(known))

        return self.do(keep)

    def resume(self) -> list[TextChunk]:
        """Finished texts of earlier attempts, without queries that the model invented."""
        stored = self.do(lambda uow: content.load_texts(uow, self.claim))
        return [TextChunk(kind, tuple(rows), tuple(rows.values())) for kind, rows in stored.items() if kind != _BANK]

    def recorder(
        self, on_queries: Callable[[UnitOfWork, Mapping[int, str]], None] | None = None
    ) -> Callable[[FitEvent], None]:
        """The progress callback: stops the job between two batches if necessary, and stores finished texts.

        Args:
            on_queries: stores queries that the model invented, by position.
        """

        def record(uow: UnitOfWork, event: FitEvent) -> None:
            chunk = event.chunk
            if chunk is not None:
                texts = dict(zip(chunk.indices, chunk.texts, strict=True))
                if chunk.kind == OWN_QUERIES and on_queries is not None:
                    on_queries(uow, texts)
                else:
                    content.save_texts(uow, self.claim, chunk.kind, texts)
            jobs.record_progress(uow, self.claim, event.stage, event.done, event.total)

        def on_event(event: FitEvent) -> None:
            self.check()
            self.do_counting(lambda uow: record(uow, event))

        return on_event


def patiently(
    sessions: SessionFactory,
    tenant_id: UUID,
    patience_s: float,
    act: Callable[[UnitOfWork], T],
    check: Callable[[], None] = lambda: None,
) -> T:
    """Runs `act` in a transaction of the tenant; retries for `patience_s` at most while the database is unavailable.

    `act` must be safe to repeat, because the outcome of a COMMIT on a broken connection is unknown.

    Args:
        check: called before each retry; may raise.
    Raises: DatabaseUnavailable: still unavailable.
    """
    deadline = time.monotonic() + patience_s
    pause = 0.1
    while True:
        try:
            with UnitOfWork.open(sessions, tenant_id) as uow:
                return act(uow)
        except DatabaseUnavailable:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
            check()
