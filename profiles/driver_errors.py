"""Errors of the database's driver without the values that they quote: errors are logged, and values are users' data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError

#: Class of SQLSTATEs whose message quotes the value ("invalid input syntax for type integer: …").
_DATA_EXCEPTION = "22"


@contextmanager
def values_hidden() -> Iterator[None]:
    """Takes users' values out of the message of a driver's error that passes; everything else about it stays."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            _hide(error.orig)
            error.args = (f"({_name(error.orig)}) {error.orig}",)
        raise
    except psycopg.Error as error:
        _hide(error)
        raise


def _hide(error: psycopg.Error) -> None:
    """Leaves the primary message and the names of what it is about; DETAIL and CONTEXT hold whole rows."""
    if error.sqlstate is None:
        if isinstance(error, psycopg.DataError):  # the driver's own, about a value that it cannot write or read
            error.args = ("the driver refuses a value",)
        return
    diag = error.diag
    quotes = error.sqlstate.startswith(_DATA_EXCEPTION)
    message = "Postgres refuses a value" if quotes else diag.message_primary or ""
    named = {"table": diag.table_name, "column": diag.column_name, "constraint": diag.constraint_name}
    facts = [f"{kind} {name}" for kind, name in named.items() if name]
    error.args = (f"{message} [{', '.join([f'SQLSTATE {error.sqlstate}', *facts])}]",)


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"
