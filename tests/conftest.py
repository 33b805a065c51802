"""Fixtures that more than one package's tests use: a migrated Postgres, and sessions that are rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import pytest_socket
import structlog
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.repository import Repository
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory
from tests.factories import Factory


def pytest_configure() -> None:
    """Logged errors have plain tracebacks: rich ones, structlog's default, take three seconds each."""
    render = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], render])


def pytest_runtest_setup() -> None:
    """Nothing leaves this machine: no model hub, no package index."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """An embedded Postgres of this test session, migrated. It is not durable, which makes it several times faster."""
    with PostgresServer(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        migrate.upgrade(server.owner_url)
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> str:
    """For processes, whose role row-level security holds for."""
    return postgres.url


@pytest.fixture(scope="session")
def owner_url(postgres: PostgresServer) -> str:
    return postgres.owner_url


@pytest.fixture(scope="session")
def owner_sessions(owner_url: str) -> Iterator[SessionFactory]:
    """Sessions that see all tenants and may stop triggers, to look at rows and to remove them."""
    engine = create_engine(owner_url)
    yield sessionmaker(engine, expire_on_commit=False)
    engine.dispose()


@pytest.fixture(scope="session")
def real_sessions(postgres_url: str) -> Iterator[SessionFactory]:
    """Sessions that really commit, for tests with several connections; see `committed`."""
    sessions = make_session_factory(postgres_url)
    yield sessions
    sessions.kw["bind"].dispose()


@pytest.fixture
def committed(real_sessions: SessionFactory, owner_sessions: SessionFactory) -> Iterator[SessionFactory]:
    """`real_sessions`, with every table emptied afterwards."""
    yield real_sessions
    empty_tables(owner_sessions)


@contextmanager
def all_rows(sessions: SessionFactory) -> Iterator[Session]:
    """A session that sees every tenant's rows and commits at the end."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        yield uow.session


def empty_tables(owner_sessions: SessionFactory) -> None:
    """Removes all rows. No trigger fires, so ready versions go too; for a few rows it is faster than TRUNCATE."""
    with owner_sessions() as session, session.begin():
        tables = session.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'")
        ).all()
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.connection().exec_driver_sql("; ".join(f"DELETE FROM {table}" for table in tables))


@pytest.fixture(scope="session")
def postgres_engine(postgres_url: str) -> Iterator[Engine]:
    """One for all tests, so that statements are compiled once."""
    engine = create_engine(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture
def session_factory(postgres_engine: Engine) -> Iterator[SessionFactory]:
    """Sessions that share one connection, whose transaction is rolled back after the test; commits are savepoints."""
    with postgres_engine.connect() as connection:
        outer = connection.begin()
        connection.execute(text("SELECT set_config('alignez.tenant', 'platform', true)"))
        yield sessionmaker(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        outer.rollback()


@pytest.fixture
def session(session_factory: SessionFactory) -> Iterator[Session]:
    with session_factory() as session:
        yield session


@pytest.fixture
def uow(session: Session) -> UnitOfWork:
    """A unit of work that nothing commits."""
    return UnitOfWork(session, Repository(session))


@pytest.fixture
def make(uow: UnitOfWork) -> Factory:
    """Makes rows in `uow`."""
    return Factory(uow)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """An embedded Redis of this test session."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
