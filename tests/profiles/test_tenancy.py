"""The database itself keeps tenants apart: a transaction sees and writes the rows of one tenant, whatever it asks."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, Engine, ForeignKeyConstraint, make_url, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from profiles import migrate
from profiles.errors import DatabaseUnavailable, UnsafeDatabaseRole
from profiles.models import Base
from profiles.service import Caller
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory
from tests.factories import Factory

#: Every table but the deployment's models.
TABLES = sorted(set(Base.metadata.tables) - {"base_models"})
OWNED = [table for table in TABLES if table != "tenants"]


@pytest.fixture
def two(uow: UnitOfWork, make: Factory) -> tuple[Caller, Caller]:
    """Two tenants with rows in every table."""
    callers = (make.caller(), make.caller())
    for caller in callers:
        ready = make.ready(caller)
        running = make.fit(caller)
        make.claimed(running)
        ids = {"tenant": caller.tenant_id, "profile": ready.profile.id, "job": running.job.id}
        for statement in _REST:
            uow.session.execute(text(statement), {name: id_ for name, id_ in ids.items() if f":{name}" in statement})
    return callers


_REST = (
    "INSERT INTO idempotency_keys (tenant_id, key, request_sha256) VALUES (:tenant, 'k', '')",
    "INSERT INTO usage (tenant_id, day, profile_id) VALUES (:tenant, '2026-01-01', :profile)",
    "INSERT INTO assignments (tenant_id, end_user, profile_id) VALUES (:tenant, 'ada', :profile)",
    "INSERT INTO job_texts (job_id, kind, position, tenant_id, text) VALUES (:job, 'k', 0, :tenant, 'text')",
)


def enter(connection: Connection, scope: UUID | str) -> None:
    connection.execute(text("SELECT set_config('alignez.tenant', :scope, true)"), {"scope": str(scope)})


def tenants_in(connection: Connection, table: str) -> set[UUID]:
    column = "id" if table == "tenants" else "tenant_id"
    return set(connection.scalars(text(f"SELECT {column} FROM {table}")))


def test_every_table_of_tenants_has_a_policy(postgres_engine: Engine) -> None:
    with postgres_engine.connect() as connection:
        guarded = connection.scalars(
            text("SELECT relname FROM pg_class JOIN pg_policy ON polrelid = pg_class.oid WHERE relrowsecurity")
        )
        assert sorted(guarded) == TABLES


def test_every_reference_names_the_tenant() -> None:
    # An operator's key may act on another tenant, whose audit log names it.
    allowed = {("audit_log", "key_id")}
    loose = {
        (table.name, next(iter(key.column_keys)))
        for table in Base.metadata.sorted_tables
        for key in table.constraints
        if isinstance(key, ForeignKeyConstraint)
        and key.referred_table.name not in ("tenants", "base_models")
        and "tenant_id" not in key.column_keys
    }
    # These refer to a query and its version, and the version is of the tenant.
    within = {("preference_pairs", "query_id"), ("query_representations", "query_id")}
    assert loose == allowed | within


@pytest.mark.parametrize("table", TABLES)
def test_a_transaction_sees_one_tenant(uow: UnitOfWork, two: tuple[Caller, Caller], table: str) -> None:
    one, other = (caller.tenant_id for caller in two)
    connection = uow.session.connection()
    assert tenants_in(connection, table) >= {one, other}
    for scope, seen in ((one, {one}), (other, {other}), ("", set())):
        enter(connection, scope)
        assert tenants_in(connection, table) == seen
    enter(connection, UUID(int=0))
    assert tenants_in(connection, table) == set()


@pytest.mark.parametrize("table", OWNED)
def test_a_transaction_writes_one_tenant(uow: UnitOfWork, two: tuple[Caller, Caller], table: str) -> None:
    one, other = (caller.tenant_id for caller in two)
    connection = uow.session.connection()
    columns = ", ".join(
        f"'{one}'::uuid AS tenant_id" if column.name == "tenant_id" else column.name
        for column in Base.metadata.tables[table].columns
    )
    row = connection.execute(text(f"SELECT {columns} FROM {table} WHERE tenant_id = :other LIMIT 1"), {"other": other})
    names = [column.name for column in Base.metadata.tables[table].columns if column.identity is None]
    values = {name: value for name, value in row.one()._mapping.items() if name in names}
    enter(connection, one)
    for change in ("DELETE FROM", "UPDATE"):
        what = " SET tenant_id = tenant_id" if change == "UPDATE" else ""
        statement = text(f"{change} {table}{what} WHERE tenant_id = :other")
        if table == "audit_log":  # which nobody changes
            with pytest.raises(ProgrammingError, match="permission denied"), connection.begin_nested():
                connection.execute(statement, {"other": other})
            continue
        assert connection.execute(statement, {"other": other}).rowcount == 0
    values["tenant_id"] = other
    insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(map(sql.Placeholder, names)),
    )
    driver = connection.connection.driver_connection
    assert driver is not None
    adapted = {name: _adapted(value) for name, value in values.items()}
    with pytest.raises(ProgrammingError, match="row-level security"), connection.begin_nested():
        connection.exec_driver_sql(insert.as_string(driver), adapted)


def _adapted(value: object) -> object:
    from psycopg.types.json import Jsonb

    return Jsonb(value) if isinstance(value, dict) else value


def test_a_row_cannot_refer_to_another_tenants(uow: UnitOfWork, two: tuple[Caller, Caller], make: Factory) -> None:
    one, other = two
    foreign = make.ready(other)
    statement = text("INSERT INTO assignments (tenant_id, end_user, profile_id) VALUES (:tenant, 'eve', :profile)")
    with pytest.raises(IntegrityError, match="foreign key"), uow.session.begin_nested():
        uow.session.execute(statement, {"tenant": one.tenant_id, "profile": foreign.profile.id})


def test_processes_may_not_connect_as_the_owner(owner_url: str) -> None:
    sessions = make_session_factory(owner_url)
    for _ in range(2):  # also after the first try
        with pytest.raises(UnsafeDatabaseRole, match="alignez_app"), UnitOfWork.open(sessions, PLATFORM):
            pass
    sessions.kw["bind"].dispose()


def test_a_connection_of_the_pool_keeps_no_tenant(committed: SessionFactory) -> None:
    with UnitOfWork.open(committed, PLATFORM) as uow:
        one, other = (Factory(uow).caller().tenant_id for _ in range(2))
    for scope in (one, other, one):
        for opening in (UnitOfWork.open, UnitOfWork.reading):
            with opening(committed, scope) as uow:
                assert uow.repository.accounts.tenants(None, 10).rows[0].id == scope


def test_the_later_owner_of_the_tables_is_refused_before_and_after_the_migration(owner_url: str) -> None:
    admin = make_url(owner_url)
    with psycopg.connect(owner_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE ROLE early LOGIN CREATEROLE PASSWORD 'early'")
        connection.execute("CREATE DATABASE early OWNER early")
    with psycopg.connect(admin.set(drivername="postgresql", database="early").render_as_string(False)) as connection:
        connection.execute("CREATE EXTENSION vector")
    url = admin.set(username="early", password="early", database="early").render_as_string(False)
    sessions = make_session_factory(url)
    try:
        with pytest.raises(DatabaseUnavailable, match="not migrated"), UnitOfWork.open(sessions, PLATFORM):
            pass
        migrate.upgrade(url)
        with pytest.raises(UnsafeDatabaseRole, match="early"), UnitOfWork.open(sessions, PLATFORM):
            pass
    finally:
        sessions.kw["bind"].dispose()
        with psycopg.connect(owner_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("DROP DATABASE early WITH (FORCE)")
            connection.execute("DROP ROLE early")
