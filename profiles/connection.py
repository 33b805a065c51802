"""Connections to Postgres that do not wait for ever: one whose server falls silent is closed by the client."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

RV = TypeVar("RV")

#: For the way of an answer: a server that lives ends a statement by its own `statement_timeout` before.
_GRACE_S = 1.0
#: How often a wait looks at its deadline.
_WAKE_S = 0.1


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection that bounds its server's silence.

    Neither TCP nor `statement_timeout` ends the wait for a server that is stopped or hangs in its storage: its kernel
    goes on acknowledging, and the timeout is the server's own.
    """

    #: The server's; 0: it has none, and silence has no bound.
    statement_timeout_s: float = 0.0

    def wait(self, gen: PQGen[RV], interval: float = _WAKE_S, timeout: float | None = None) -> RV:
        """psycopg's wait, which every statement goes through, with the bound.

        Raises: psycopg.OperationalError: the server was silent for too long; the connection is closed.
        """
        if self.statement_timeout_s:
            gen = self._bounded(gen, self.statement_timeout_s + _GRACE_S)
        return super().wait(gen, interval, timeout)

    def _bounded(self, gen: PQGen[RV], silence_s: float) -> Generator[Wait, Ready | int, RV]:
        ready: Ready | int | None = None
        deadline = time.monotonic() + silence_s
        while True:
            try:
                # None starts a generator; psycopg's type does not say so.
                wanted = gen.send(ready)  # type: ignore[arg-type]
            except StopIteration as end:
                result: RV = end.value
                return result
            ready = yield wanted
            if ready:
                deadline = time.monotonic() + silence_s
            elif time.monotonic() > deadline:
                self.close()
                raise psycopg.OperationalError(f"the server was silent for {silence_s:g} s")
