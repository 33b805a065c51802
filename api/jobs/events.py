"""A job's events as a stream that holds neither a thread nor a database connection between two polls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from uuid import UUID

from api.http.sse import event
from api.services import Services
from profiles.errors import DatabaseUnavailable
from profiles.models import FINISHED
from profiles.service import Caller, get_job, job_events
from profiles.uow import UnitOfWork

_PAGE = 200


@dataclass
class JobWatch:
    """Follows one job, from the event after `after_id`.

    It polls with a short transaction every `job_poll_s`: workers on other machines write the events, and one LISTEN
    connection per watcher would cost the database more.
    """

    services: Services
    caller: Caller
    job_id: UUID
    after_id: int
    _pending: list[bytes] = field(default_factory=list)
    _ended: bool = False
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def poll(self) -> None:
        """Reads new events; blocks. Raises: NotFound, DatabaseUnavailable."""
        with UnitOfWork.open(self.services.sessions, self.caller.tenant_id) as uow:
            # The status first: it is committed together with the last event, so a finished job has all its events.
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
        """Ends the stream, because the client has disconnected."""
        self._stopped.set()

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Blocks of events, an empty one first, until the job ends, the client disconnects, or the process drains."""
        yield b""  # the job exists, so the response begins
        while True:
            if self._pending:
                block, self._pending = b"".join(self._pending), []
                yield block
            if self._ended or self._stopped.is_set() or self.services.draining.is_set():
                return
            await self._wait(self.services.settings.job_poll_s)
            if self._stopped.is_set():
                return
            try:
                await self.services.database_threads.run(self.poll)
            except DatabaseUnavailable as error:
                # Heartbeats continue; the next poll resumes after the same event.
                await self._wait(float(error.retry_after_s))

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
