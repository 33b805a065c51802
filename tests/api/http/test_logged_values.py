"""Errors that nobody foresaw are logged in full, and what users have sent is no part of them."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from profiles.errors import DatabaseUnavailable
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from profiles.vectors import insert_rows
from tests.api.conftest import Tenant

SECRET = "acme-7c1f"
#: What a row of `tenants` meets, as a bug of ours or of a migration would have it.
FORCED = {
    "check_violation": "NEW.max_queued_jobs := -1",
    "unique_violation": "NEW.id := (SELECT min(id::text)::uuid FROM tenants)",
    "not_null_violation": "NEW.created_at := NULL",
    "invalid_text": "NEW.max_queued_jobs := NEW.name::integer",
    "invalid_json": "PERFORM NEW.name::jsonb",
    "too_long": "NEW.name := repeat(NEW.name, 100)",
}


@pytest.fixture
def broken(owner_sessions: SessionFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    """A trigger that makes Postgres refuse new tenants of some names."""

    def execute(*statements: str) -> None:
        with owner_sessions() as session, session.begin():
            for statement in statements:
                session.connection().exec_driver_sql(statement)

    execute(
        f"CREATE FUNCTION forced() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.name = '{SECRET}' THEN {FORCED[request.param]}; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER forced BEFORE INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION forced()",
    )
    yield
    execute("DROP FUNCTION forced CASCADE")


@pytest.mark.parametrize("broken", FORCED, indirect=True)
def test_an_unforeseen_error_of_the_database_logs_no_value(
    operator: Tenant, broken: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reply = operator.post("/admin/tenants", json={"name": SECRET})
    assert reply.status_code == 500
    logged = capsys.readouterr().out + caplog.text
    assert "unexpected_error" in logged
    assert "SQLSTATE" in logged  # the reason is there
    assert "INSERT INTO tenants" in logged
    for value in (SECRET, SECRET[:8]):
        assert value not in logged
        assert value not in reply.text


def test_an_error_of_a_raw_cursor_shows_no_value(sessions: SessionFactory) -> None:
    """Binary inserts go past SQLAlchemy, and their errors quote the row."""

    def insert() -> None:
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            columns = [("id", "uuid"), ("name", "text"), ("max_queued_jobs", "int4")]
            insert_rows(uow.session, "tenants", columns, [(uuid4(), SECRET, -1)])

    with pytest.raises(psycopg.Error, match="SQLSTATE 23") as raised:
        insert()
    assert SECRET not in str(raised.value)


def test_a_failed_connection_still_says_why(sessions: SessionFactory) -> None:
    with pytest.raises(DatabaseUnavailable) as raised, UnitOfWork.open(sessions, PLATFORM) as uow:
        uow.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert "terminat" in str(raised.value.__cause__)


def test_names_that_are_not_refused_are_no_secret(operator: Tenant, sessions: SessionFactory) -> None:
    """The trigger of the tests above is gone."""
    assert operator.post("/admin/tenants", json={"name": f"{SECRET} {operator.caller.tenant_id}"}).status_code == 201
