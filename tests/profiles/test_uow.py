"""Connections of the pool: one that Postgres closed is replaced unseen, and none keeps a scope."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import text
from sqlalchemy.exc import InternalError

from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory


@pytest.fixture
def sessions(postgres_url: str) -> Iterator[SessionFactory]:
    """A pool of its own, with one connection."""
    made = make_session_factory(DatabaseSettings(database_url=postgres_url, pool_size=1, pool_overflow=0))
    yield made
    made.kw["bind"].dispose()


def raw(uow: UnitOfWork) -> psycopg.Connection:
    connection = uow.session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


def status(connection: psycopg.Connection) -> TransactionStatus:
    return connection.info.transaction_status


def backend(sessions: SessionFactory) -> int:
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        return int(uow.session.scalar(text("SELECT pg_backend_pid()")))


def test_a_connection_that_postgres_closed_costs_nobody_a_request(sessions: SessionFactory, postgres_url: str) -> None:
    before = backend(sessions)
    assert backend(sessions) == before
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
    assert backend(sessions) != before
    with UnitOfWork.reading(sessions, PLATFORM) as uow:
        assert uow.session.scalar(text("SELECT 1")) == 1


def test_a_connection_that_was_told_something_is_kept(sessions: SessionFactory, postgres_url: str) -> None:
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        uow.session.execute(text("LISTEN something"))
    before = backend(sessions)
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as other:
        other.execute("NOTIFY something")
    assert backend(sessions) == before
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        assert not raw(uow).autocommit


def test_reading_writes_nothing_and_leaves_neither_a_transaction_nor_a_scope_behind(sessions: SessionFactory) -> None:
    scope = text("SELECT current_setting('alignez.tenant', true)")
    with UnitOfWork.reading(sessions, PLATFORM) as uow:
        assert uow.session.scalar(scope) == PLATFORM
        connection = raw(uow)
        assert status(connection) is TransactionStatus.INTRANS
        with pytest.raises(InternalError, match="read-only"):
            uow.session.execute(text("INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'x')"))
    assert status(connection) is TransactionStatus.IDLE
    for opening in (UnitOfWork.reading, UnitOfWork.open):
        with opening(sessions, UUID(int=1)) as uow:
            assert uow.session.scalar(scope) == str(UUID(int=1))
            assert raw(uow) is connection
        with sessions() as session:  # nobody does this: it would see no row
            assert session.scalar(scope) == ""
