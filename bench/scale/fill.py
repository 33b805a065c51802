"""A database with the data of many users: copies of one profile that was really fitted.

Each tenant has a key and 10 profiles. Each profile has a ready, sample-conditional version of 10 fit queries with all
its content, a finished job with its events, an end user and a day's usage.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from uuid import UUID

from sqlalchemy import text

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.query_bank import default_queries
from bench.fits import fit, new_tenant, runner
from bench.processes import Database
from profiles.models.base import Base
from profiles.service import Caller, KeySpec, create_key
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from worker.runner import JobRunner

PER_TENANT = 10
QUERIES = 10
HIDDEN_SIZE, LAYERS = 64, 4
#: The model of these profiles as `worker.engine` names it.
MODEL = f"fake:?n_layers={LAYERS}&hidden_size={HIDDEN_SIZE}"
SPEC = {
    "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
    "queries": [{"text": f"question number {i}"} for i in range(QUERIES)],
    "fit": {"method": "alignez", "neighbors": 5, "tune_queries": 0, "held_out_queries": 4, "answer_tokens": 16},
}


def fill(data: Database, profiles: int) -> None:
    """Creates the profiles, and updates Postgres' statistics as autovacuum would."""
    template = _fit_one(data.sessions)
    values = {"tenants": profiles // PER_TENANT, "each": PER_TENANT, "template": template}
    with data.owner() as session, session.begin():
        # Without triggers, which forbid writes to ready versions, and without foreign-key checks, which copies pass.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in _statements():
            names = {name: value for name, value in values.items() if f":{name}" in statement}
            session.execute(text(statement), names)
    with data.owner.kw["bind"].connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))


def template_runner(sessions: SessionFactory, engine: FakeEngine) -> JobRunner:
    """The job runner of a worker with this engine."""
    return runner(sessions, engine, "fake:", default_queries()[:8])


def callers(sessions: SessionFactory, count: int) -> dict[str, Caller]:
    """A new key for each of `count` tenants: secret → its caller."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        statement = text("SELECT id FROM tenants WHERE name <> 'template' ORDER BY id LIMIT :count")
        found = uow.session.scalars(statement, {"count": count}).all()
        made = [create_key(uow, tenant, KeySpec("member", "bench")) for tenant in found]
        return {secret: Caller(row.id, row.tenant_id, row.role) for row, secret in made}


def _fit_one(sessions: SessionFactory) -> UUID:
    """Fits the version that is copied for all others; returns its id."""
    caller, _ = new_tenant(sessions, "template")
    with closing(FakeEngine(n_layers=LAYERS, hidden_size=HIDDEN_SIZE)) as engine:
        return fit(sessions, template_runner(sessions, engine), caller, "template", SPEC)


def _statements() -> list[str]:
    """SQL in order. A row of `made` joins tenant, profile, version and job; a row of `copied`, a query and its copy."""
    return [
        """CREATE TEMPORARY TABLE made ON COMMIT DROP AS
        SELECT t.number AS tenant_number, p.number AS profile_number, t.tenant_id,
               gen_random_uuid() AS profile_id, gen_random_uuid() AS version_id, gen_random_uuid() AS job_id
        FROM (SELECT number, gen_random_uuid() AS tenant_id FROM generate_series(1, :tenants) AS number) AS t,
             generate_series(0, :each - 1) AS p (number)""",
        """INSERT INTO tenants (id, name) SELECT DISTINCT tenant_id, 'tenant-' || tenant_number FROM made""",
        """INSERT INTO api_keys (id, tenant_id, name, role, prefix, secret_sha256)
        SELECT gen_random_uuid(), tenant_id, 'filled', 'member', 'az_', sha256(tenant_id::text::bytea)
        FROM made WHERE profile_number = 0""",
        _copy("profiles", "o.id = (SELECT profile_id FROM profile_versions WHERE id = :template)",
              {"id": "made.profile_id", "name": "'p' || made.profile_number"}),
        _copy("profile_versions", "o.id = :template", {"id": "made.version_id"}),
        _copy("profile_aliases"),
        """INSERT INTO assignments (tenant_id, end_user, profile_id)
        SELECT tenant_id, 'user-' || profile_number, profile_id FROM made""",
        """INSERT INTO usage (tenant_id, day, profile_id, requests, prompt_tokens, completion_tokens)
        SELECT tenant_id, current_date - 1, profile_id, 10, 1000, 1000 FROM made""",
        _copy("jobs", changed={"id": "made.job_id"}),
        _copy("job_events", "o.job_id = (SELECT id FROM jobs WHERE version_id = :template) ORDER BY o.id"),
        _copy("version_edits"),
        _copy("evaluations", changed={"id": "gen_random_uuid()"}),
        """CREATE TEMPORARY TABLE copied ON COMMIT DROP AS
        SELECT q.id AS original, gen_random_uuid() AS query_id, made.tenant_id, made.version_id
        FROM made, fit_queries AS q WHERE q.version_id = :template""",
        _copy("fit_queries", "o.id = made.original", {"id": "made.query_id"}, "copied"),
        _copy("preference_pairs", "o.query_id = made.original", source="copied"),
        _copy("query_representations", "o.query_id = made.original", source="copied"),
    ]  # fmt: skip


def _copy(
    table: str, where: str = "o.version_id = :template", changed: Mapping[str, str] = {}, source: str = "made"
) -> str:
    """Copies the template's rows of a table once for each row of `source`, with these columns changed."""
    own = {column: f"made.{column}" for column in ("tenant_id", "profile_id", "version_id", "job_id", "query_id")}
    names = [column.name for column in Base.metadata.tables[table].columns if column.identity is None]
    values = ({**own, **changed}.get(column, f"o.{column}") for column in names)
    columns = f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)}"
    return f"{columns} FROM {source} AS made, {table} AS o WHERE {where}"
