"""The migrated schema is the models' schema, and the database itself keeps ready versions as they are."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cli.local_stack.postgres import PostgresServer
from profiles import migrate, vectors
from profiles.errors import DatabaseUnavailable
from profiles.models import Base, VersionState
from profiles.service import archive_version, authenticate
from profiles.uow import UnitOfWork, make_session_factory
from tests.factories import Factory


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a new database on the session's server, without any table."""
    name = f"empty_{uuid.uuid4().hex[:8]}"
    admin = postgres.url.replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{postgres.url.rsplit('/', 1)[0]}/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def head_reached(url: str) -> bool:
    sessions = make_session_factory(url)
    try:
        with sessions() as session:
            return migrate.serves_this_release(session)
    finally:
        sessions.kw["bind"].dispose()


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


def test_a_database_behind_this_release_does_not_serve_it(empty_url: str) -> None:
    assert migrate.upgrade(empty_url) is True
    scripts = ScriptDirectory.from_config(migrate.alembic_config())
    before = scripts.get_revision(scripts.get_revision("head").down_revision)
    set_revision(empty_url, before.revision)
    assert not head_reached(empty_url)


def test_a_database_that_a_newer_release_migrated_serves_this_one_and_is_left_alone(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    set_revision(empty_url, "of_a_release_to_come")
    assert head_reached(empty_url)
    assert migrate.upgrade(empty_url) is False
    with psycopg.connect(empty_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("of_a_release_to_come",)]


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


#: The release that kept representations by layer.
BY_LAYER = "2026_11_24_0442"
LAYERS = (3, 5, 11)


def old_rows(query_ids: list[uuid.UUID], tenant: uuid.UUID, version: uuid.UUID, width: int) -> list[tuple[object, ...]]:
    """Representations as that release wrote them: help and plain, no harm."""
    random = np.random.default_rng(width)

    def packed() -> bytes:
        return vectors.pack(random.standard_normal((1, width)).astype(np.float32))

    return [(query, layer, tenant, version, packed(), None, packed()) for query in query_ids for layer in LAYERS]


def old_write(connection: psycopg.Connection, rows: list[tuple[object, ...]]) -> None:
    """What that release's worker does with one chunk."""
    connection.execute("DELETE FROM pair_representations WHERE query_id = ANY(%s)", [[row[0] for row in rows]])
    statement = (
        "COPY pair_representations (query_id, layer, tenant_id, version_id, help, harm, plain)"
        " FROM STDIN (FORMAT BINARY)"
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(["uuid", "int4", "uuid", "uuid", "bytea", "bytea", "bytea"])
        for row in rows:
            copy.write_row(row)


def by_layer(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    """What that release's API reads."""
    return connection.execute(
        "SELECT query_id, layer, tenant_id, version_id, help, harm, plain FROM pair_representations"
        " ORDER BY query_id, layer"
    ).fetchall()


def old_content(connection: psycopg.Connection, state: str) -> list[tuple[object, ...]]:
    """A version of two queries with their representations, written in the old form; its rows by query and layer."""
    tenant, profile, version, model = (uuid.uuid4() for _ in range(4))
    queries = sorted(uuid.uuid4() for _ in range(2))
    connection.execute("INSERT INTO tenants (id, name) VALUES (%s, %s)", [tenant, str(tenant)])
    connection.execute(
        "INSERT INTO base_models (id, name, source, fingerprint, n_layers, hidden_size, context_length, prompt_format)"
        " VALUES (%s, 'nano', 'nano', %s, 12, 6, 512, 'plain')",
        [model, str(model)],
    )
    connection.execute("INSERT INTO profiles (id, tenant_id, name) VALUES (%s, %s, 'p')", [profile, tenant])
    connection.execute(
        "INSERT INTO profile_versions (id, tenant_id, profile_id, base_model_id, number, state, spec)"
        " VALUES (%s, %s, %s, %s, 1, 'pending', '{}')",
        [version, tenant, profile, model],
    )
    for i, query in enumerate(queries):
        connection.execute(
            "INSERT INTO fit_queries (id, tenant_id, version_id, position, text, source)"
            " VALUES (%s, %s, %s, %s, 'q', 'given')",
            [query, tenant, version, i],
        )
    rows = old_rows(queries, tenant, version, 4096 if state == "ready" else 8)
    old_write(connection, rows)
    if state == "ready":
        connection.execute(
            "UPDATE profile_versions SET state = 'ready', quality = 'good', ready_at = now(), layers = %s,"
            " sha256 = repeat('a', 64) WHERE id = %s",
            [list(LAYERS), version],
        )
    return rows


def sort(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return sorted(rows, key=lambda row: (row[0], row[1]))


def test_representations_by_layer_become_values_by_query_and_come_back(empty_url: str) -> None:
    plain_url = empty_url.replace("+psycopg", "")
    migrate.upgrade(empty_url, BY_LAYER)
    with psycopg.connect(plain_url) as connection:
        rows = sort(old_content(connection, "ready") + old_content(connection, "pending"))
        assert by_layer(connection) == rows
    migrate.upgrade(empty_url)
    with psycopg.connect(plain_url) as connection:
        stored = connection.execute("SELECT query_id, layers, help, harm, plain FROM query_representations").fetchall()
        assert by_layer(connection) == rows
    assert len(stored) == 4
    for query, layers, help, harm, plain in stored:
        own = [row for row in rows if row[0] == query]
        assert layers == list(LAYERS)
        assert harm is None
        assert help == b"".join(row[4] for row in own)  # type: ignore[misc]
        assert plain == b"".join(row[6] for row in own)  # type: ignore[misc]
    engine = create_engine(empty_url)
    with engine.connect() as connection_:
        command.downgrade(migrate.alembic_config(connection_), BY_LAYER)
    engine.dispose()
    with psycopg.connect(plain_url) as connection:
        assert by_layer(connection) == rows
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="immutable"):
            connection.execute("DELETE FROM pair_representations")


def test_the_previous_release_writes_and_deletes_through_the_view(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with psycopg.connect(empty_url.replace("+psycopg", "")) as connection:
        rows = sort(old_content(connection, "pending"))
        old_write(connection, rows)  # the same chunk again, as after a crash
        assert by_layer(connection) == rows
        stored = connection.execute("SELECT layers, help FROM query_representations ORDER BY query_id").fetchall()
        assert [row[0] for row in stored] == [list(LAYERS)] * 2
        assert vectors.unpack_many([row[1] for row in stored], len(LAYERS)).shape == (2, len(LAYERS), 8)
        with pytest.raises(psycopg.errors.UniqueViolation, match="layer 3"), connection.transaction():
            connection.execute("INSERT INTO pair_representations SELECT * FROM pair_representations LIMIT 1")
        old_content(connection, "ready")
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="immutable"):
            connection.execute("DELETE FROM pair_representations")


def test_a_database_that_is_not_migrated_says_so(empty_url: str) -> None:
    sessions = make_session_factory(empty_url)
    with pytest.raises(DatabaseUnavailable, match="alignez migrate"), UnitOfWork.open(sessions) as uow:
        authenticate(uow, "az_anything")
    sessions.kw["bind"].dispose()


def refused(session: Session, statement: str, **values: object) -> None:
    """The database itself refuses the statement, and says why."""
    with pytest.raises(IntegrityError, match=r"immutable|never changed"), session.begin_nested():
        assert session.execute(text(statement), values).rowcount  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        "spec = '{}'",
        "fit_config = '{}'",
        "sha256 = repeat('0', 64)",
        "number = 99",
        "layers = '{0}'",
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
        "UPDATE directions SET tau = tau + 1 WHERE version_id = :id",
        "DELETE FROM query_representations WHERE version_id = :id",
        "DELETE FROM pair_representations WHERE version_id = :id",
        "DELETE FROM fit_queries WHERE version_id = :id",
        "INSERT INTO fit_queries (id, tenant_id, version_id, position, text, source)"
        " SELECT gen_random_uuid(), tenant_id, version_id, 999, 'more', 'given' FROM fit_queries"
        " WHERE version_id = :id LIMIT 1",
    ],
)
def test_the_content_of_a_ready_version_cannot_be_changed(uow: UnitOfWork, make: Factory, statement: str) -> None:
    version = make.ready(make.caller()).version
    refused(uow.session, statement, id=version.id)


def test_a_ready_version_can_be_archived_and_never_comes_back(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller()
    first = make.ready(caller)
    make.ready(caller, profile=first.profile.id)
    archived = archive_version(uow, caller, first.profile.id, 2)
    assert archived.state is VersionState.ARCHIVED
    assert archived.archived_at is not None
    refused(uow.session, "UPDATE profile_versions SET state = 'ready' WHERE id = :id", id=archived.id)
    refused(uow.session, "UPDATE fit_queries SET text = 'other' WHERE version_id = :id", id=archived.id)


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET action = 'other'", "DELETE FROM audit_log"])
def test_the_audit_log_is_append_only(uow: UnitOfWork, make: Factory, statement: str) -> None:
    make.caller()
    refused(uow.session, statement)
