"""Fills a database as many users leave it: copies of one profile that was really fitted.

10 profiles for each tenant, each with a ready, sample-conditional version of 10 fit queries with pairs, representations
and edits, queries to judge on, an evaluation, a finished job with its events, an end user and a day's usage; and a key
for each tenant.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.query_bank import default_queries
from profiles.fitting.request import request_fit
from profiles.service import Caller, ModelFacts, create_key, create_tenant, promote
from profiles.uow import SessionFactory, UnitOfWork
from worker.engine import LoadedEngine
from worker.job import JobOptions
from worker.runner import JobRunner

PER_TENANT = 10
QUERIES = 10
HIDDEN_SIZE, LAYERS = 64, 4
#: How `worker.engine` and the measurements name the model of these profiles.
MODEL = f"fake:?n_layers={LAYERS}&hidden_size={HIDDEN_SIZE}"
SPEC = {
    "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
    "queries": [f"question number {i}" for i in range(QUERIES)],
    "fit": {"method": "alignez", "neighbors": 5, "tune_queries": 0, "held_out_queries": 4, "answer_tokens": 16},
}
#: What the template is judged on.
BANK = default_queries()[:8]


def fill(sessions: SessionFactory, profiles: int) -> None:
    """Makes `profiles` profiles, and has Postgres count them as autovacuum has by the time that there are so many."""
    engine = FakeEngine(n_layers=LAYERS, hidden_size=HIDDEN_SIZE)
    template = _fit_one(sessions, engine)
    engine.close()
    _copy(sessions, template, profiles)


def runner(sessions: SessionFactory, engine: FakeEngine) -> JobRunner:
    """What a worker with this engine runs its jobs with."""
    info = engine.info
    facts = ModelFacts(
        info.name, "fake:", info.fingerprint, info.n_layers, info.hidden_size, info.context_length, info.prompt_format
    )
    return JobRunner(sessions, LoadedEngine(engine, facts, BANK), JobOptions("bench", 60.0, 600.0, 1, 5.0, 256))


def make_keys(sessions: SessionFactory, count: int, role: str = "member") -> list[str]:
    """A key for each of some of the tenants."""
    with UnitOfWork.open(sessions) as uow:
        statement = text("SELECT id FROM tenants WHERE name <> 'template' ORDER BY id LIMIT :count")
        found = uow.session.scalars(statement, {"count": count}).all()
        return [create_key(uow, tenant, role, "bench")[1] for tenant in found]


def _fit_one(sessions: SessionFactory, engine: FakeEngine) -> UUID:
    """The version that all others are copies of; returns its id."""
    with UnitOfWork.open(sessions) as uow:
        tenant = create_tenant(uow, "template")
        row, _ = create_key(uow, tenant.id, "member", "bench")
        caller = Caller(row.id, tenant.id, row.role)
        request = request_fit(uow, caller, SPEC, name="template")
        job, version = request.job.id, request.version.id
    outcome = runner(sessions, engine).run(job)
    if outcome != "succeeded":
        raise RuntimeError(f"the template's fit ended as {outcome!r}")
    with UnitOfWork.open(sessions) as uow:
        promote(uow, caller, "template", 1, force=True)  # a fake model proves nothing
    return version


#: In this order; `made` says which tenant, profile and version belong together.
_COPIES = (
    """
    CREATE TEMPORARY TABLE made ON COMMIT DROP AS
    SELECT t.number AS tenant_number, p.number AS profile_number, t.tenant_id,
           gen_random_uuid() AS profile_id, gen_random_uuid() AS version_id, gen_random_uuid() AS job_id
    FROM (SELECT number, gen_random_uuid() AS tenant_id FROM generate_series(1, :tenants) AS number) AS t,
         generate_series(0, :each - 1) AS p (number)
    """,
    "INSERT INTO tenants (id, name) SELECT DISTINCT tenant_id, 'tenant-' || tenant_number FROM made",
    """
    INSERT INTO api_keys (id, tenant_id, name, role, prefix, secret_sha256)
    SELECT gen_random_uuid(), tenant_id, 'filled', 'member', 'az_', sha256(tenant_id::text::bytea)
    FROM made WHERE profile_number = 0
    """,
    """
    INSERT INTO profiles (id, tenant_id, name, base_model_id)
    SELECT made.profile_id, made.tenant_id, 'p' || profile_number, base_model_id
    FROM made, profile_versions AS v WHERE v.id = :template
    """,
    """
    INSERT INTO profile_versions (id, tenant_id, profile_id, number, state, base_model_id, spec, fit_config, layers,
        embedding_layer, diagnostics, quality, quality_reasons, sha256, ready_at, method, prefix, steps, positions,
        lookup)
    SELECT made.version_id, made.tenant_id, made.profile_id, 1, state, base_model_id, spec, fit_config, layers,
        embedding_layer, diagnostics, quality, quality_reasons, sha256, ready_at, method, prefix, steps, positions,
        lookup
    FROM made, profile_versions AS v WHERE v.id = :template
    """,
    """
    INSERT INTO profile_aliases (profile_id, alias, version_id, tenant_id, weight)
    SELECT made.profile_id, alias, made.version_id, made.tenant_id, weight
    FROM made, profile_aliases AS a WHERE a.version_id = :template
    """,
    """
    INSERT INTO assignments (tenant_id, end_user, profile_id)
    SELECT tenant_id, 'user-' || profile_number, profile_id FROM made
    """,
    """
    INSERT INTO usage (tenant_id, day, profile_id, requests, prompt_tokens, completion_tokens)
    SELECT tenant_id, current_date - 1, profile_id, 10, 1000, 1000 FROM made
    """,
    """
    INSERT INTO jobs (id, tenant_id, profile_id, version_id, status, stage, progress, attempt, failures, worker,
        sent_at, sends, event_at, started_at, finished_at)
    SELECT made.job_id, made.tenant_id, made.profile_id, made.version_id, status, stage, progress, attempt, failures,
        worker, sent_at, sends, event_at, started_at, finished_at
    FROM made, jobs AS j WHERE j.version_id = :template
    """,
    """
    INSERT INTO job_events (tenant_id, job_id, kind, payload)
    SELECT made.tenant_id, made.job_id, e.kind, payload
    FROM made, job_events AS e JOIN jobs AS j ON j.id = e.job_id WHERE j.version_id = :template ORDER BY e.id
    """,
    """
    INSERT INTO version_edits (version_id, persona_group, layer, tenant_id, u, v, c)
    SELECT made.version_id, persona_group, layer, made.tenant_id, u, v, c
    FROM made, version_edits AS e WHERE e.version_id = :template
    """,
    """
    INSERT INTO evaluations (id, tenant_id, version_id, job_id, judge, quality, reasons, report, choice)
    SELECT gen_random_uuid(), made.tenant_id, made.version_id, made.job_id, judge, quality, reasons, report, choice
    FROM made, evaluations AS e WHERE e.version_id = :template
    """,
    """
    CREATE TEMPORARY TABLE copied ON COMMIT DROP AS
    SELECT q.id AS original, gen_random_uuid() AS id, made.tenant_id, made.version_id
    FROM made, fit_queries AS q WHERE q.version_id = :template
    """,
    """
    INSERT INTO fit_queries (id, tenant_id, version_id, position, text, source, split, persona_group, embedding,
        embedding_sketch)
    SELECT c.id, c.tenant_id, c.version_id, position, text, source, split, persona_group, embedding, embedding_sketch
    FROM copied AS c JOIN fit_queries AS q ON q.id = c.original
    """,
    """
    INSERT INTO preference_pairs (query_id, tenant_id, version_id, help_characteristics, harm_characteristics,
        help_response, harm_response)
    SELECT c.id, c.tenant_id, c.version_id, help_characteristics, harm_characteristics, help_response, harm_response
    FROM copied AS c JOIN preference_pairs AS p ON p.query_id = c.original
    """,
    """
    INSERT INTO query_representations (query_id, tenant_id, version_id, layers, help, harm)
    SELECT c.id, c.tenant_id, c.version_id, layers, help, harm
    FROM copied AS c JOIN query_representations AS r ON r.query_id = c.original
    """,
)


def _copy(sessions: SessionFactory, template: UUID, profiles: int) -> None:
    values = {"tenants": profiles // PER_TENANT, "each": PER_TENANT, "template": template}
    with sessions() as session, session.begin():
        # Content of a ready version cannot be written, by trigger; and the copies' references are right as they are.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in _COPIES:
            names = {name: value for name, value in values.items() if f":{name}" in statement}
            session.execute(text(statement), names)
    with sessions.kw["bind"].connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))  # as autovacuum has done by then
