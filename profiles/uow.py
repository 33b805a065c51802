"""Transactions. Services and repositories flush; only `UnitOfWork.open` commits."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError, ProgrammingError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

from profiles.connection import DeadlineConnection
from profiles.driver_errors import values_hidden
from profiles.errors import DatabaseFull, DatabaseUnavailable
from profiles.repository import Repository
from profiles.settings import DatabaseSettings

SessionFactory = sessionmaker[Session]


def make_session_factory(settings: DatabaseSettings | str) -> SessionFactory:
    """A factory of sessions on one connection pool; nothing connects before the first use.

    Args:
        settings: or just the database URL. Rows stay readable after their session has closed.
    """
    if isinstance(settings, str):
        settings = DatabaseSettings(database_url=settings)
    url = make_url(settings.database_url)
    given = url.query.get("options", "")
    options = f"-c statement_timeout={int(settings.statement_timeout_s * 1000)} -c timezone=UTC"
    defaults: dict[str, str | int] = {
        "connect_timeout": settings.connect_timeout_s,
        # A peer that vanished without a word (power, network) is noticed within about 10 s.
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    engine = create_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout=settings.pool_timeout_s,
        hide_parameters=True,  # they are users' data, and an error that shows them is logged
        # The URL's own options win: of two `-c` for one name Postgres takes the later.
        connect_args={name: value for name, value in defaults.items() if name not in url.query}
        | {"options": " ".join([options, *([given] if isinstance(given, str) else given)]).strip()},
    )

    def connect(dialect: object, record: object, arguments: list[Any], named: dict[str, Any]) -> DeadlineConnection:
        connection = DeadlineConnection.connect(*arguments, **named)
        connection.statement_timeout_s = settings.statement_timeout_s
        return connection

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkout", _refuse_dead)
    return sessionmaker(engine, expire_on_commit=False)


def _refuse_dead(connection: Any, record: object, proxy: object) -> None:
    """Has the pool replace a connection that Postgres has closed: a restarted Postgres costs no request.

    A connection that idles has nothing to read, and one that was closed or broke is readable; so a look at the socket
    does what SQLAlchemy's `pool_pre_ping` does by a round trip. What is readable may still be alive (a notice): that
    one is asked.
    """
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            if not selector.select(0):
                return
        before = connection.autocommit
        connection.autocommit = True
        connection.execute("SELECT 1")
        connection.autocommit = before
    except (psycopg.Error, OSError, ValueError) as error:
        raise InvalidatePoolError from error


@dataclass(frozen=True)
class UnitOfWork:
    """One transaction: its session, and the repositories on it."""

    session: Session
    repository: Repository

    @classmethod
    @contextmanager
    def open(cls, sessions: SessionFactory) -> Iterator[UnitOfWork]:
        """Commits when the block ends, rolls back when it raises.

        Raises: DatabaseUnavailable: Postgres is away, not migrated, or gave up on a lock or a statement.
        """
        with database_errors(), sessions() as session, session.begin():
            yield cls(session, Repository(session))

    @classmethod
    @contextmanager
    def reading(cls, sessions: SessionFactory) -> Iterator[UnitOfWork]:
        """For one statement that reads: no transaction around it, which saves the round trips of BEGIN and COMMIT.

        Several statements see several moments, and what one writes is committed at once: use `open` for those.

        Raises: DatabaseUnavailable: as `open`.
        """
        with database_errors(), sessions() as session:
            session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            yield cls(session, Repository(session))


@contextmanager
def database_errors() -> Iterator[None]:
    """The one place where a driver's "not now" becomes `DatabaseUnavailable`."""
    try:
        with values_hidden():
            yield
    except TimeoutError as error:
        raise DatabaseUnavailable("all database connections are busy") from error
    except (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise _unavailable(error) from error
    except ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise DatabaseUnavailable("the database is not migrated; run `alignez migrate`", 10) from error
        raise


def _unavailable(error: Exception) -> DatabaseUnavailable:
    """The error for a driver's, which names the resource that Postgres ran out of (SQLSTATE class 53)."""
    driver = getattr(error, "orig", None) or error
    if isinstance(driver, psycopg.errors.DiskFull):
        return DatabaseFull()
    if isinstance(driver, psycopg.errors.TooManyConnections):
        return DatabaseUnavailable("the database takes no more connections: its max_connections are in use")
    if isinstance(driver, psycopg.Error) and (driver.sqlstate or "").startswith("53"):
        return DatabaseUnavailable(f"the database is out of a resource (SQLSTATE {driver.sqlstate})")
    return DatabaseUnavailable()
