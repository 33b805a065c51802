"""Where transactions begin and end. Services and repositories flush; only `UnitOfWork.open` commits."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError, ProgrammingError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

from profiles.errors import DatabaseUnavailable
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
    options = f"-c statement_timeout={int(settings.statement_timeout_s * 1000)} -c timezone=UTC"
    engine = create_engine(
        settings.database_url,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout=settings.pool_timeout_s,
        connect_args={
            "connect_timeout": settings.connect_timeout_s,
            "options": options,
            # A peer that vanished without a word (power, network) is noticed within about 10 s.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        },
    )
    event.listen(engine, "checkout", _refuse_dead)
    return sessionmaker(engine, expire_on_commit=False)


def _refuse_dead(connection: Any, record: object, proxy: object) -> None:
    """Has the pool replace a connection that Postgres has closed: a restarted Postgres costs nobody a request.

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
        yield
    except TimeoutError as error:
        raise DatabaseUnavailable("all database connections are busy") from error
    except (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable from error
    except ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise DatabaseUnavailable("the database is not migrated; run `alignez migrate`", 10) from error
        raise
