"""Usage of each tenant: counted in memory as answers end, added to the database every few seconds."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime
from uuid import UUID

import structlog

from profiles.errors import DatabaseUnavailable
from profiles.service import UsageCount, record_usage
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork

log = structlog.get_logger("api")

_Key = tuple[UUID, date, UUID | None]


class UsageMeter:
    """Sums of requests and tokens per tenant, day and profile, on their way to the `usage` table.

    A request costs three additions and no round trip. The price: a process that is killed (`kill -9`) loses what it
    counted since the last flush, at most one interval; while the database is away counts are kept and added later. A
    connection that breaks during COMMIT leaves open whether it happened, and then an interval may be counted twice.

    Args:
        interval_s: between two flushes of the background thread, which runs from `start` to `stop`.
    """

    def __init__(self, sessions: SessionFactory, interval_s: float) -> None:
        self._sessions = sessions
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._counts: dict[_Key, tuple[int, int, int]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to flush in the background."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, which flushes once more; blocks until it has."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def count(self, tenant_id: UUID, profile_id: UUID | None, prompt_tokens: int, completion_tokens: int) -> None:
        """Adds one request to today's sums (UTC); `profile_id` None is the bare base model. Never blocks for long."""
        self._add((tenant_id, datetime.now(UTC).date(), profile_id), (1, prompt_tokens, completion_tokens))

    def flush(self) -> bool:
        """Adds what was counted to the database; returns whether nothing is left to add."""
        with self._lock:
            taken, self._counts = self._counts, {}
        if not taken:
            return True
        try:
            with UnitOfWork.open(self._sessions, PLATFORM) as uow:
                record_usage(uow, [UsageCount(*key, *sums) for key, sums in taken.items()])
        except DatabaseUnavailable as error:
            log.warning("usage_kept", rows=len(taken), reason=str(error))
            for key, sums in taken.items():
                self._add(key, sums)
            return False
        except Exception:
            # Trying these again would fail again, and nothing after them would ever be counted.
            log.exception("usage_lost", rows=len(taken))
        return True

    def _add(self, key: _Key, sums: tuple[int, int, int]) -> None:
        with self._lock:
            before = self._counts.get(key, (0, 0, 0))
            self._counts[key] = (before[0] + sums[0], before[1] + sums[1], before[2] + sums[2])

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.flush()
        if not self.flush():
            log.error("usage_lost", reason="the database is away at shutdown")
