"""Connections to Postgres with a bound on the server's silence, and driver errors without users' data."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait
from sqlalchemy.exc import DBAPIError

RV = TypeVar("RV")

#: Time for the answer to arrive: a working server ends a statement at its own `statement_timeout`.
_GRACE_S = 1.0
#: Interval at which a wait checks its deadline.
_WAKE_S = 0.1
#: Class of the SQLSTATEs whose message quotes the value ("invalid input syntax for type integer: …").
_DATA_EXCEPTION = "22"


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection that the client closes when the server is silent for too long.

    Neither TCP nor `statement_timeout` ends the wait for a server that is stopped or blocked by its storage: its kernel
    still acknowledges packets, and the server itself implements the timeout.
    """

    #: The server's statement timeout; 0: there is none, and silence has no bound.
    statement_timeout_s: float = 0.0

    def wait(self, gen: PQGen[RV], interval: float = _WAKE_S, timeout: float | None = None) -> RV:
        """psycopg's wait, which every statement uses, with the bound.

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


def listen(url: str, channel: str, silence_s: float) -> DeadlineConnection:
    """A connection of its own, in autocommit, that receives the notices of a channel.

    Args:
        url: SQLAlchemy's, of the driver psycopg. silence_s: longest silence of the server in answer to a statement.
    Raises: psycopg.Error.
    """
    plain = url.replace("postgresql+psycopg://", "postgresql://", 1)
    connection = DeadlineConnection.connect(plain, autocommit=True, connect_timeout=3)
    connection.statement_timeout_s = silence_s
    try:
        connection.execute(f"LISTEN {channel}")
    except psycopg.Error:
        connection.close()
        raise
    return connection


@contextmanager
def values_hidden() -> Iterator[None]:
    """Removes users' values from the message of a driver's error raised in the block, because errors are logged."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            _hide(error.orig)
            kind = type(error.orig)
            error.args = (f"({kind.__module__}.{kind.__qualname__}) {error.orig}",)
        raise
    except psycopg.Error as error:
        _hide(error)
        raise


def _hide(error: psycopg.Error) -> None:
    """Keeps the primary message and the names of table, column and constraint; DETAIL and CONTEXT hold whole rows."""
    if error.sqlstate is None:
        if isinstance(error, psycopg.DataError):  # the driver itself cannot write or read a value
            error.args = ("the driver refuses a value",)
        return
    diag = error.diag
    quotes = error.sqlstate.startswith(_DATA_EXCEPTION)
    message = "Postgres refuses a value" if quotes else diag.message_primary or ""
    named = {"table": diag.table_name, "column": diag.column_name, "constraint": diag.constraint_name}
    facts = [f"{kind} {name}" for kind, name in named.items() if name]
    error.args = (f"{message} [{', '.join([f'SQLSTATE {error.sqlstate}', *facts])}]",)
