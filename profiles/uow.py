"""Transactions, each for one tenant. Services and repositories flush; only `UnitOfWork.open` commits.

Row-level security shows a transaction the rows of its tenant only, whatever its statements ask for. So a forgotten
filter finds nothing, and a row of another tenant cannot be written.
"""

from __future__ import annotations

import selectors
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import psycopg
from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError, ProgrammingError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

from profiles.connection import DeadlineConnection, values_hidden
from profiles.errors import DatabaseFull, DatabaseUnavailable, UnsafeDatabaseRole
from profiles.repository import Repository
from profiles.settings import DatabaseSettings

SessionFactory = sessionmaker[Session]

#: For work on rows of several tenants: a worker's claim, the relay, counters, the check of a key, an operator's calls.
PLATFORM: Final = "platform"
Scope = UUID | Literal["platform"]

T = TypeVar("T")


def not_in(url: URL, defaults: Mapping[str, T]) -> dict[str, T]:
    """The connection parameters that a URL does not set itself."""
    return {name: value for name, value in defaults.items() if name not in url.query}


def make_session_factory(settings: DatabaseSettings | str) -> SessionFactory:
    """A factory of sessions on one connection pool, which connects at the first use.

    Rows stay readable after their session has closed.

    Args:
        settings: settings, or the database URL alone.
    """
    if isinstance(settings, str):
        settings = DatabaseSettings(database_url=settings)
    url = make_url(settings.database_url)
    given = url.query.get("options", "")
    options = f"-c statement_timeout={int(settings.statement_timeout_s * 1000)} -c timezone=UTC"
    defaults: dict[str, str | int] = {
        "connect_timeout": settings.connect_timeout_s,
        # A peer that vanished (power, network) is detected within about 10 s.
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    engine = create_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout=settings.pool_timeout_s,
        hide_parameters=True,  # they are users' data, and errors are logged
        # The URL's own options take precedence: Postgres uses the last `-c` of a name.
        connect_args=not_in(url, defaults)
        | {"options": " ".join([options, *([given] if isinstance(given, str) else given)]).strip()},
    )

    def connect(dialect: object, record: object, arguments: list[Any], named: dict[str, Any]) -> DeadlineConnection:
        connection = DeadlineConnection.connect(*arguments, **named)
        connection.statement_timeout_s = settings.statement_timeout_s
        return connection

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "first_connect", _refuse_unsafe_role)
    event.listen(engine, "checkout", _refuse_dead)
    return sessionmaker(engine, expire_on_commit=False)


def _refuse_unsafe_role(connection: Any, record: object) -> None:
    """Refuses a role that row-level security does not hold for, or that could make the tables that are not there yet.

    Raises: UnsafeDatabaseRole. DatabaseUnavailable: not migrated; the check is repeated at the next connection.
    """
    before = connection.autocommit
    connection.autocommit = True
    role, bypasses, owns, may_own = connection.execute(_ROLE_RIGHTS).fetchone()
    connection.autocommit = before
    if bypasses or owns:
        raise UnsafeDatabaseRole(role, "bypasses row-level security" if bypasses else "owns the tables")
    if may_own:
        raise DatabaseUnavailable(_NOT_MIGRATED, 10)


_NOT_MIGRATED = "the database is not migrated; run `alignez migrate`"

_ROLE_RIGHTS = """
SELECT current_user, rolsuper OR rolbypassrls,
       EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('tenants') AND pg_has_role(relowner, 'MEMBER')),
       to_regclass('tenants') IS NULL AND has_schema_privilege('public', 'CREATE')
FROM pg_roles WHERE rolname = current_user
"""


def _refuse_dead(connection: Any, record: object, proxy: object) -> None:
    """Makes the pool replace a connection that Postgres has closed, so that no request fails after a restart.

    An idle connection has nothing to read, and a closed or broken one is readable. So a check of the socket replaces
    the round trip of SQLAlchemy's `pool_pre_ping`. A readable connection may still work (a notice arrived): it gets a
    query.
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
class CalledFrom:
    """The request that the present work belongs to, for the audit log. address: of the client."""

    request_id: str = ""
    address: str = ""


#: Set once per request or job, and read by every transaction of its threads.
CALLED_FROM: ContextVar[CalledFrom | None] = ContextVar("called_from", default=None)

_ENTER = (
    "SELECT set_config('alignez.tenant', %s, true), set_config('alignez.request', %s, true),"
    " set_config('alignez.address', %s, true)"
)


@dataclass(frozen=True)
class UnitOfWork:
    """One transaction: its session and repositories."""

    session: Session
    repository: Repository

    @classmethod
    @contextmanager
    def open(cls, sessions: SessionFactory, scope: Scope) -> Iterator[UnitOfWork]:
        """A transaction that is committed when the block ends and rolled back when it raises.

        Args:
            scope: the tenant whose rows it may read and write, or PLATFORM.
        Raises: DatabaseUnavailable: Postgres is unreachable or not migrated, or a lock or a statement timed out.
        """
        with database_errors(), sessions() as session, session.begin():
            caller = CALLED_FROM.get() or CalledFrom()
            session.connection().exec_driver_sql(_ENTER, (str(scope), caller.request_id, caller.address))
            yield cls(session, Repository(session))

    @classmethod
    @contextmanager
    def reading(cls, sessions: SessionFactory, scope: Scope) -> Iterator[UnitOfWork]:
        """A read-only transaction that takes a round trip less than `open`: its begin and its scope are one message.

        Its statements see different states, each the one when it began.

        Raises: DatabaseUnavailable: as `open`.
        """
        with database_errors(), sessions() as session:
            # The driver then sends no BEGIN of its own; the pool's ROLLBACK ends the transaction.
            connection = session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            connection.exec_driver_sql(f"BEGIN READ ONLY; SET LOCAL alignez.tenant = '{scope}'")
            yield cls(session, Repository(session))


@contextmanager
def database_errors() -> Iterator[None]:
    """Turns temporary errors of the driver into `DatabaseUnavailable`."""
    try:
        with values_hidden():
            yield
    except TimeoutError as error:
        raise DatabaseUnavailable("all database connections are busy") from error
    except (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise _unavailable(error) from error
    except ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise DatabaseUnavailable(_NOT_MIGRATED, 10) from error
        raise


def _unavailable(error: Exception) -> DatabaseUnavailable:
    """The error for one of the driver; names the resource that Postgres ran out of (SQLSTATE class 53)."""
    driver = getattr(error, "orig", None) or error
    if isinstance(driver, psycopg.errors.DiskFull):
        return DatabaseFull()
    if isinstance(driver, psycopg.errors.TooManyConnections):
        return DatabaseUnavailable("the database takes no more connections: its max_connections are in use")
    if isinstance(driver, psycopg.Error) and (driver.sqlstate or "").startswith("53"):
        return DatabaseUnavailable(f"the database is out of a resource (SQLSTATE {driver.sqlstate})")
    return DatabaseUnavailable()
