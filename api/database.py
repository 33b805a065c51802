"""Threads for work on the database: as many as the pool has connections, and apart from all other threads."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy import text

from profiles.errors import DatabaseFull, DatabaseUnavailable
from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, Scope, SessionFactory, UnitOfWork

T = TypeVar("T")

#: A megabyte for the time of a transaction; an UPDATE would find room in pages that there are.
_TAKE_SPACE = text(
    "CREATE TEMPORARY TABLE alignez_space ON COMMIT DROP AS "
    "SELECT repeat('x', 1000) AS filler FROM generate_series(1, 1000)"
)


class DatabaseThreads:
    """Runs each piece of work on the database in one thread call, from its connection's check-out to its return.

    Nothing waits for a thread while it holds a connection. With threads that wait for connections and connections that
    wait for threads, a burst of requests would block both until the pool's timeout. Requests beyond the pool's size
    wait here, where they cost neither.
    """

    def __init__(self, sessions: SessionFactory, settings: DatabaseSettings) -> None:
        self._sessions = sessions
        self._wait_s = settings.pool_timeout_s
        self._places = CapacityLimiter(settings.pool_size + settings.pool_overflow)
        self._full = False
        self._threads = CapacityLimiter(math.inf)  # the places bound them

    async def run(self, work: Callable[[], T]) -> T:
        """Result of `work`, which may use one connection at a time.

        Raises: DatabaseUnavailable: no place became free in time. Whatever `work` raises.
        """
        borrower = object()
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire_on_behalf_of(borrower)
        except TimeoutError as error:
            raise DatabaseUnavailable("all database connections are busy") from error
        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        except DatabaseFull:
            self._full = True
            raise
        finally:
            self._places.release_on_behalf_of(borrower)

    async def transaction(self, work: Callable[[UnitOfWork], T], scope: Scope = PLATFORM) -> T:
        """Result of `work`, in a transaction of its own that is committed when this returns. Raises: as `run`."""

        def whole() -> T:
            with UnitOfWork.open(self._sessions, scope) as uow:
                return work(uow)

        return await self.run(whole)

    async def check_writes(self) -> None:
        """Asks the database for a little disk space, if it had none the last time that this process wrote something.

        Raises: DatabaseFull: it still has none. DatabaseUnavailable.
        """
        if self._full:
            await self.transaction(lambda uow: uow.session.execute(_TAKE_SPACE))
            self._full = False
