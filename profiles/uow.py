"""Where transactions begin and end. Services and repositories flush; only `UnitOfWork.open` commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError, TimeoutError
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
        pool_pre_ping=True,  # a restarted Postgres costs nobody a request
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
    return sessionmaker(engine, expire_on_commit=False)


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
