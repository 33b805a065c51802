"""Connections of the pool: one that Postgres closed is replaced unseen, and reads need no transaction."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import text

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


def test_reading_needs_no_transaction_and_leaves_none_behind(sessions: SessionFactory) -> None:
    with UnitOfWork.reading(sessions, PLATFORM) as uow:
        uow.session.execute(text("SELECT 1"))
        assert raw(uow).info.transaction_status is TransactionStatus.IDLE
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        uow.session.execute(text("SELECT 1"))
        assert raw(uow).info.transaction_status is TransactionStatus.INTRANS
