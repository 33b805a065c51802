"""The relay: sends committed outbox rows to the broker, and recovers lost jobs and messages.

A message is removed only after the broker confirmed it. So a relay that is killed loses no message but may send some
twice, which is harmless, because a job is claimed once. Several relays may run: each skips rows that another locked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import psycopg
import structlog
from opentelemetry import trace
from opentelemetry.trace import NoOpTracer, SpanKind, Tracer

from profiles.connection import DeadlineConnection, listen
from profiles.errors import BrokerUnavailable, DatabaseUnavailable
from profiles.fitting import claims as jobs
from profiles.repository.jobs import OUTBOX_CHANNEL, Backlog, WaitingMessage
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from telemetry.tracing import parent_context

_log = structlog.get_logger("relay")

_BATCH = 100
_LONGEST_PAUSE_S = 5.0
#: Longest wait for the answer to LISTEN.
_LISTEN_S = 5.0


@dataclass(frozen=True)
class RelayOptions:
    """Pauses of the relay, seconds.

    Args:
        poll_s: longest wait for a notification; bounds the delay after a missed one.
        sweep_s: time between two sweeps.
        resend_s: waiting time of a queued job before its message is sent again; doubles with each message.
        idempotency_days: days for which responses are kept for replay.
    """

    poll_s: float = 1.0
    sweep_s: float = 2.0
    resend_s: float = 20.0
    idempotency_days: int = 3


class JobQueue(Protocol):
    """Sends workers the hint that a job is due. It may repeat, reorder or lose hints: the jobs table is the truth.

    Implementations: `celery_queue.CeleryQueue`, and an in-memory one for tests.
    """

    def publish(self, job_ids: Sequence[UUID]) -> list[UUID]:
        """Sends one message per job; returns those that the broker confirmed, in order.

        Raises: BrokerUnavailable: the broker confirmed none.
        """
        ...

    def close(self) -> None:
        """Closes the connections. Safe to call twice."""
        ...


class RelayObserver(Protocol):
    """Receives the relay's events, in the relay's thread."""

    def sent(self, messages: int) -> None:
        """The broker confirmed this number of messages."""
        ...

    def swept(self, leases_ended: int, resent: int, backlog: Backlog) -> None:
        """A sweep has ended. backlog: the waiting work after it."""
        ...

    def unavailable(self) -> None:
        """Database or broker was unavailable."""
        ...


def relay_once(sessions: SessionFactory, queue: JobQueue, tracer: Tracer | None = None) -> int:
    """Sends one batch of waiting messages; returns the number of confirmed ones.

    Args:
        tracer: gets a span per message, from the job's request to the broker's confirmation.
    Raises: BrokerUnavailable, DatabaseUnavailable.
    """
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        messages = uow.repository.jobs.take_messages(_BATCH)
        if not messages:
            return 0
        confirmed = set(queue.publish([message.job_id for message in messages]))
        sent = {message.id: message.job_id for message in messages if message.job_id in confirmed}
        uow.repository.jobs.sent(sent)
    for message in messages:
        if message.id in sent:
            _tell(message, tracer or NoOpTracer())
    return len(sent)


def _tell(message: WaitingMessage, tracer: Tracer) -> None:
    """Writes a log line and a span with the message's waiting time."""
    span = tracer.start_span(
        "outbox",
        parent_context(message.traceparent),
        SpanKind.PRODUCER,
        {"alignez.job_id": str(message.job_id), "alignez.request_id": message.request_id or ""},
        start_time=time.time_ns() - round(message.waited_s * 1e9),
    )
    with trace.use_span(span, end_on_exit=True):
        _log.info(
            "message_sent",
            job_id=str(message.job_id),
            request_id=message.request_id,
            waited_ms=round(message.waited_s * 1e3, 1),
        )


class Relay:
    """The relay's loop. `run` returns soon after `stop`, in any state of broker and database."""

    def __init__(
        self,
        sessions: SessionFactory,
        queue: JobQueue,
        url: str,
        options: RelayOptions,
        observer: RelayObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._observer = observer
        self._tracer = tracer
        self._sessions = sessions
        self._queue = queue
        self._url = url
        self._options = options
        self._stop = threading.Event()
        self._listener: DeadlineConnection | None = None
        self._next_sweep = 0.0
        self._next_cleaning = 0.0

    def stop(self) -> None:
        """Ends the loop; safe from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Relays until stopped. Waits with growing pauses for an unavailable broker or database."""
        pause = 0.1
        while not self._stop.is_set():
            try:
                self._turn()
                pause = 0.1
            except (BrokerUnavailable, DatabaseUnavailable) as error:
                if self._observer is not None:
                    self._observer.unavailable()
                _log.warning("relay_waits", pause_s=pause, reason=str(error))
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        self._close_listener()

    def _turn(self) -> None:
        # LISTEN comes before the first read, so that no commit between both is missed.
        listener = self._listening()
        while not self._stop.is_set():
            sent = relay_once(self._sessions, self._queue, self._tracer)
            if self._observer is not None:
                self._observer.sent(sent)
            if sent < _BATCH:
                break
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + self._options.sweep_s
            if self._sweep():
                return
        self._wait(listener)

    def _sweep(self) -> bool:
        """Recovers lost jobs and messages; True if there are messages to send."""
        with UnitOfWork.open(self._sessions, PLATFORM) as uow:
            ended, resent = jobs.sweep(uow, self._options.resend_s)
            if time.monotonic() >= self._next_cleaning:
                self._next_cleaning = time.monotonic() + 3600.0
                uow.repository.accounts.forget_idempotency_keys(self._options.idempotency_days)
            if self._observer is not None:
                self._observer.swept(ended, resent, uow.repository.jobs.backlog())
        if ended or resent:
            _log.info("sweep", leases_ended=ended, resent=resent)
        return bool(ended or resent)

    def _listening(self) -> DeadlineConnection:
        if self._listener is None or self._listener.closed:
            try:
                self._listener = listen(self._url, OUTBOX_CHANNEL, _LISTEN_S)
            except psycopg.Error as error:
                raise DatabaseUnavailable from error
        return self._listener

    def _wait(self, listener: DeadlineConnection) -> None:
        """Waits for a notification for at most `poll_s`, in short steps that check for `stop`."""
        deadline = time.monotonic() + self._options.poll_s
        try:
            while not self._stop.is_set() and (left := deadline - time.monotonic()) > 0:
                if any(True for _ in listener.notifies(timeout=min(left, 0.25), stop_after=1)):
                    return
        except psycopg.Error as error:
            self._close_listener()
            raise DatabaseUnavailable from error

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
