"""A job's events as a stream that holds neither a thread nor a connection while nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

from api.http.sse import HEARTBEAT, event
from api.services import Services
from profiles.errors import DatabaseUnavailable
from profiles.models import FINISHED
from profiles.service import Caller, get_job, job_events
from profiles.uow import UnitOfWork

_PAGE = 200


@dataclass
class JobWatch:
    """Follows one job from an event on.

    It looks with a short transaction every `job_poll_s`: events are written by workers on other machines, and one
    LISTEN connection per watcher would cost the database more than this.
    """

    services: Services
    caller: Caller
    job_id: UUID
    after_id: int
    _pending: list[bytes] = field(default_factory=list)
    _ended: bool = False
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def poll(self) -> None:
        """Reads what is new; blocks. Raises: NotFound, DatabaseUnavailable."""
        with UnitOfWork.open(self.services.sessions) as uow:
            # The job first: its last event was written with its last status, so a finished job has all its events.
            status = get_job(uow, self.caller, self.job_id).status
            rows = job_events(uow, self.caller, self.job_id, self.after_id, _PAGE)
        for row in rows:
            data = {"job": str(self.job_id), "at": row.created_at.isoformat(), **row.payload}
            self._pending.append(event(data, name=row.kind, event_id=row.id))
            self.after_id = row.id
        if status in FINISHED and len(rows) < _PAGE:
            self._ended = True
            self._pending.append(event({"job": str(self.job_id), "status": status.value}, name="end"))

    def stop(self) -> None:
        """The client has gone."""
        self._stopped.set()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Blocks of events until the job has ended, the client has gone, or the process is to end."""
        settings = self.services.settings
        quiet_since = time.monotonic()
        while True:
            if self._pending:
                block, self._pending = b"".join(self._pending), []
                quiet_since = time.monotonic()
                yield block
            elif time.monotonic() - quiet_since >= settings.heartbeat_s:
                quiet_since = time.monotonic()
                yield HEARTBEAT
            if self._ended or self._stopped.is_set() or self.services.draining.is_set():
                return
            await self._wait(settings.job_poll_s)
            if self._stopped.is_set():
                return
            try:
                await self.services.database_threads.run(self.poll)
            except DatabaseUnavailable as error:
                # The watcher keeps its place; heartbeats go on until the database is back.
                await self._wait(float(error.retry_after_s))

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
