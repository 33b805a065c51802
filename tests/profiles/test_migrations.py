"""The migrated schema is the models' schema, and the database itself keeps ready versions as they are."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.errors import DatabaseUnavailable
from profiles.models import Base, ProfileVersion, VersionState
from profiles.service import archive_version, authenticate
from profiles.uow import PLATFORM, UnitOfWork, make_session_factory
from tests.factories import Factory


@pytest.fixture(scope="module")
def postgres_engine(owner_url: str) -> Iterator[Engine]:
    """As the tables' owner, who has every right: what is refused here is refused to everybody."""
    engine = create_engine(owner_url)
    yield engine
    engine.dispose()


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a new database on the session's server, without any table."""
    name = f"empty_{uuid.uuid4().hex[:8]}"
    admin = postgres.owner_url.replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{postgres.owner_url.rsplit('/', 1)[0]}/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def head_reached(url: str) -> bool:
    engine = create_engine(url)
    try:
        with Session(engine) as session:
            return migrate.serves_this_release(session)
    finally:
        engine.dispose()


def set_revision(url: str, revision: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])


def test_models_and_migrated_schema_are_the_same(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        command.check(migrate.alembic_config(connection))  # raises when autogenerate would add something
    engine.dispose()


def test_an_empty_database_serves_no_release_and_a_migrated_one_is(empty_url: str) -> None:
    assert not head_reached(empty_url)
    migrate.upgrade(empty_url)
    assert head_reached(empty_url)
    assert tables(empty_url) == set(Base.metadata.tables)


def test_upgrading_twice_changes_nothing(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    before = tables(empty_url)
    migrate.upgrade(empty_url)
    assert tables(empty_url) == before
    assert head_reached(empty_url)


def test_a_database_that_a_newer_release_migrated_serves_this_one_and_is_left_alone(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    set_revision(empty_url, "of_a_release_to_come")
    assert head_reached(empty_url)
    assert migrate.upgrade(empty_url) is False
    with psycopg.connect(empty_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("of_a_release_to_come",)]


@pytest.mark.slow
def test_a_second_migrator_waits_its_turn_however_long_the_first_one_takes(empty_url: str) -> None:
    lock = 4_202_611_230  # `migrations/env.py` runs only inside Alembic, so its constant cannot be imported
    with psycopg.connect(empty_url.replace("+psycopg", ""), autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(%s)", [lock])
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(migrate.upgrade, empty_url)
            time.sleep(6.0)  # over the 5 s that a migration waits for a table's lock
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            assert first.execute(waiting).fetchone() == (1,)
            first.execute("SELECT pg_advisory_unlock(%s)", [lock])
            second.result(60)
    assert head_reached(empty_url)


def test_downgrade_removes_all_and_upgrade_brings_it_back(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    engine = create_engine(empty_url)
    with engine.connect() as connection:
        command.downgrade(migrate.alembic_config(connection), "base")
    engine.dispose()
    assert tables(empty_url) == set()
    migrate.upgrade(empty_url)
    assert tables(empty_url) == set(Base.metadata.tables)


def test_a_database_that_is_not_migrated_says_so(empty_url: str) -> None:
    sessions = make_session_factory(empty_url)
    with pytest.raises(DatabaseUnavailable, match="alignez migrate"), UnitOfWork.open(sessions, PLATFORM) as uow:
        authenticate(uow, "az_anything")
    sessions.kw["bind"].dispose()


def refused(session: Session, statement: str, **values: object) -> None:
    """The database itself refuses the statement, and says why."""
    with pytest.raises(IntegrityError, match="immutable"), session.begin_nested():
        assert session.connection().execute(text(statement), values).rowcount


@pytest.mark.parametrize(
    "change",
    [
        "spec = '{}'",
        "fit_config = '{}'",
        "sha256 = repeat('0', 64)",
        "number = 99",
        "layers = '{0}'",
        "method = 'prompt'",
        """prefix = '{"system": "other"}'""",
        "steps = 9",
        "lookup = 'groups'",
        "embedding_layer = 0",
        """diagnostics = '{"other": 1}'""",
        "quality = 'weak'",
        "quality_reasons = '[1]'",
        "ready_at = ready_at + interval '1 second'",
        "promote = NOT promote",
        "state = 'pending'",
        "state = 'failed'",
        "state = 'archived', sha256 = repeat('0', 64)",
    ],
)
def test_a_ready_version_cannot_be_changed(uow: UnitOfWork, make: Factory, change: str) -> None:
    version = make.ready(make.caller()).version
    refused(uow.session, f"UPDATE profile_versions SET {change} WHERE id = :id", id=version.id)


def test_a_ready_version_cannot_be_deleted(uow: UnitOfWork, make: Factory) -> None:
    version = make.ready(make.caller()).version
    refused(uow.session, "DELETE FROM profile_versions WHERE id = :id", id=version.id)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fit_queries SET text = 'other' WHERE version_id = :id",
        "UPDATE preference_pairs SET help_response = 'other' WHERE version_id = :id",
        "UPDATE query_representations SET help = harm WHERE version_id = :id",
        "UPDATE version_edits SET c = u WHERE version_id = :id",
        "DELETE FROM version_edits WHERE version_id = :id",
        "UPDATE fit_queries SET split = 'unused' WHERE version_id = :id",
        "DELETE FROM query_representations WHERE version_id = :id",
        "DELETE FROM fit_queries WHERE version_id = :id",
        "INSERT INTO fit_queries (id, tenant_id, version_id, position, text, source)"
        " SELECT gen_random_uuid(), tenant_id, version_id, 999, 'more', 'given' FROM fit_queries"
        " WHERE version_id = :id LIMIT 1",
    ],
)
def test_the_content_of_a_ready_version_cannot_be_changed(uow: UnitOfWork, make: Factory, statement: str) -> None:
    version = make.ready(make.caller()).version
    refused(uow.session, statement, id=version.id)


#: Tables whose rows are part of one version: they go with it.
CONTENT = sorted(
    table.name
    for table in Base.metadata.tables.values()
    if any(key.column.table.name == "profile_versions" and key.ondelete == "CASCADE" for key in table.foreign_keys)
)


@pytest.fixture
def ready(make: Factory) -> ProfileVersion:
    """A ready version with rows in every table of `CONTENT`."""
    return make.ready(make.caller()).version


def test_every_table_of_a_version_s_content_is_known() -> None:
    assert CONTENT == ["evaluations", "fit_queries", "preference_pairs", "query_representations", "version_edits"]


@pytest.mark.parametrize("table", CONTENT)
def test_no_row_moves_out_of_a_ready_version(uow: UnitOfWork, make: Factory, ready: ProfileVersion, table: str) -> None:
    pending = make.fit(make.caller()).version
    statement = f"UPDATE {table} SET version_id = :other WHERE version_id = :id"
    refused(uow.session, statement, id=ready.id, other=pending.id)


@pytest.mark.parametrize("table", CONTENT)
def test_no_row_of_a_ready_version_is_deleted(uow: UnitOfWork, ready: ProfileVersion, table: str) -> None:
    refused(uow.session, f"DELETE FROM {table} WHERE version_id = :id", id=ready.id)


@pytest.mark.parametrize("table", [*CONTENT, "profile_versions", "profiles", "base_models", "audit_log"])
def test_immutable_rows_are_not_truncated(uow: UnitOfWork, table: str) -> None:
    refused(uow.session, f"TRUNCATE {table} CASCADE")


@pytest.mark.parametrize("table", ["preference_pairs", "query_representations"])
def test_another_version_adds_nothing_to_a_ready_version_s_queries(
    uow: UnitOfWork, make: Factory, ready: ProfileVersion, table: str
) -> None:
    pending = make.fit(make.caller()).version
    columns = "layers, tenant_id" if table == "query_representations" else "tenant_id"
    values = columns.replace("layers", "'{1}'")
    insert = (
        f"INSERT INTO {table} (query_id, version_id, {columns}) SELECT id, :other, {values} FROM fit_queries"
        " WHERE version_id = :id"
    )
    with uow.session.begin_nested() as savepoint:
        uow.session.execute(text("SET LOCAL session_replication_role = replica"))  # the ready version lacks these rows
        uow.session.execute(text(f"DELETE FROM {table}"))
        uow.session.execute(text("SET LOCAL session_replication_role = origin"))
        with pytest.raises(IntegrityError, match="violates foreign key constraint"):
            uow.session.execute(text(insert), {"id": ready.id, "other": pending.id})
        savepoint.rollback()


@pytest.mark.parametrize("change", ["judge = 'nano'", "quality = 'weak'", "report = '[]'"])
def test_an_evaluation_cannot_be_changed(uow: UnitOfWork, ready: ProfileVersion, change: str) -> None:
    refused(uow.session, f"UPDATE evaluations SET {change} WHERE version_id = :id", id=ready.id)


@pytest.mark.parametrize("change", ["fingerprint = 'other'", "n_layers = 9", "hidden_size = 9"])
def test_what_identifies_a_base_model_cannot_be_changed(uow: UnitOfWork, make: Factory, change: str) -> None:
    model = make.base_model()
    refused(uow.session, f"UPDATE base_models SET {change} WHERE id = :id", id=model.id)
    assert make.base_model(source="models/moved").id == model.id


def test_a_ready_version_can_be_archived_and_never_comes_back(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller()
    first = make.ready(caller)
    make.ready(caller, profile=first.profile.id)
    archived = archive_version(uow, caller, first.profile.id, 2)
    assert archived.state is VersionState.ARCHIVED
    assert archived.archived_at is not None
    refused(uow.session, "UPDATE profile_versions SET state = 'ready' WHERE id = :id", id=archived.id)
    refused(uow.session, "UPDATE fit_queries SET text = 'other' WHERE version_id = :id", id=archived.id)
    pending = make.fit(caller).version
    move = "UPDATE fit_queries SET version_id = :other WHERE version_id = :id"
    refused(uow.session, move, id=archived.id, other=pending.id)


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET action = 'other'", "DELETE FROM audit_log"])
def test_the_audit_log_is_append_only(uow: UnitOfWork, make: Factory, statement: str) -> None:
    make.caller()
    refused(uow.session, statement)
