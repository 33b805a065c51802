"""The service at the size of many users: `python -m bench.scale [--profiles 100000]`.

The embedded Postgres holds 10 profiles for each of many tenants, each with a ready, sample-conditional version of 10
fit queries, their representations and directions: copies of one that was really fitted, so every statement finds whole
rows. The engine is the model-free one: measured is what is ours, and Postgres. A client process asks over HTTP, one
request after another, for profiles of tenants drawn at random, most of them for the first time, so caches help little.
A large table that was read from its beginning to its end (a sequential scan) during the requests is named, with how
often: that is a statement without its index.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import text

from alignez_core.engines.fake_engine import FakeEngine
from api.app import create_app
from api.settings import ApiSettings
from bench.report import Report
from bench.served import LineClient, serving
from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.logs import configure_logs
from profiles.service import Caller, ModelFacts, create_key, create_tenant, request_fit
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, UnitOfWork, make_session_factory
from worker.engine import LoadedEngine
from worker.fit import FitOptions, FitRunner

PER_TENANT = 10
QUERIES = 10
ASKING_TENANTS = 200
REQUESTS = 600
HIDDEN_SIZE, LAYERS = 64, 4
#: A table is small enough to be read whole below this many rows.
SMALL = 20_000

Asked = tuple[str, str, str, dict[str, Any] | None]  #: key, method, path, body


def run(profiles: int = 100_000) -> Report:
    """Fills the database and measures."""
    configure_logs("warning", "json")
    report = Report(
        "scale",
        f"{profiles:,} profiles of {profiles // PER_TENANT:,} tenants, {profiles * QUERIES:,} fit queries "
        f"(D={HIDDEN_SIZE}, L={LAYERS}); {REQUESTS} requests of each kind, one after another",
    )
    engine = FakeEngine(n_layers=LAYERS, hidden_size=HIDDEN_SIZE)
    with tempfile.TemporaryDirectory() as folder, PostgresServer(Path(folder)) as postgres:
        migrate.upgrade(postgres.url)
        database = DatabaseSettings(database_url=postgres.url)
        sessions = make_session_factory(database)
        template = _fit_one(sessions, engine)
        began = time.perf_counter()
        _copy(sessions, template, profiles)
        report.add("filled in", time.perf_counter() - began, "s")
        keys = _keys(sessions)
        app = create_app(
            ApiSettings(port=0, auth_cache_s=60.0), engine=engine, session_factory=sessions, database=database
        )
        with serving(app) as port, LineClient("bench.scale_client", str(port)) as client:
            _measure(report, sessions, client, keys, engine.info.name)
        _sizes(report, sessions)
        sessions.kw["bind"].dispose()
    engine.close()
    return report


def _measure(report: Report, sessions: SessionFactory, client: LineClient, keys: Sequence[str], base: str) -> None:
    draw = random.Random(0)

    def some(method: str, path: str, body: dict[str, Any] | None = None, profile: str = "p{}") -> list[Asked]:
        asked: list[Asked] = []
        for _ in range(REQUESTS):
            name = profile.format(draw.randrange(PER_TENANT))
            filled = None if body is None else json.loads(json.dumps(body).replace("NAME", name))
            asked.append((draw.choice(keys), method, path.replace("NAME", name), filled))
        return asked

    question = {"messages": [{"role": "user", "content": "How do I start hiking?"}], "max_tokens": 1}
    kinds = {
        "GET /v1/profiles": (some("GET", "/v1/profiles"), "≤ 20"),
        "GET /v1/profiles/{name}": (some("GET", "/v1/profiles/NAME"), "≤ 20"),
        "GET /v1/profiles/{name}/versions/1": (some("GET", "/v1/profiles/NAME/versions/1"), "≤ 20"),
        "an answer, base model": (some("POST", "/v1/chat/completions", {"model": base, **question}), ""),
        "an answer, sample-conditional": (
            some("POST", "/v1/chat/completions", {"model": f"{base}@NAME", **question}),
            "",
        ),
    }
    for asked, _ in kinds.values():  # connections, keys and statements, by other tenants' first rows
        client.ask(asked[:20])
    before = _scans(sessions)
    taken: dict[str, np.ndarray[Any, Any]] = {}
    for name, (asked, must) in kinds.items():
        taken[name] = np.array(client.ask(asked)) * 1e3
        report.add(f"{name}, p50", float(np.percentile(taken[name], 50)), "ms")
        report.add("  p95", float(np.percentile(taken[name], 95)), "ms", must)
    edited, bare = taken["an answer, sample-conditional"], taken["an answer, base model"]
    added = np.percentile(edited, [50, 95]) - np.percentile(bare, 50)
    report.add("added by a sample-conditional profile, p50", float(added[0]), "ms")
    report.add("  p95", float(added[1]), "ms", "≤ 10")
    after = _scans(sessions)
    whole = {table: after[table] - before.get(table, 0) for table in after if after[table] > before.get(table, 0)}
    report.add("large tables read whole", len(whole), "", "0")
    for table, times in whole.items():
        report.add(f"  {table}", times, "times")


def _fit_one(sessions: SessionFactory, engine: FakeEngine) -> UUID:
    """The version that all others are copies of; returns its id."""
    with UnitOfWork.open(sessions) as uow:
        tenant = create_tenant(uow, "template")
        row, _ = create_key(uow, tenant.id, "member", "bench")
        spec = {
            "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
            "queries": [f"question number {i}" for i in range(QUERIES)],
        }
        request = request_fit(uow, Caller(row.id, tenant.id, row.role), spec, name="template")
        job, version = request.job.id, request.version.id
    info = engine.info
    facts = ModelFacts(
        info.name, "fake:", info.fingerprint, info.n_layers, info.hidden_size, info.context_length, info.prompt_format
    )
    options = FitOptions("bench", 60.0, 600.0, 1, 5.0, 256)
    outcome = FitRunner(sessions, LoadedEngine(engine, facts, ()), options).run(job)
    if outcome != "succeeded":
        raise RuntimeError(f"the template's fit ended as {outcome!r}")
    return version


#: In this order; `made` says which tenant, profile and version belong together.
_COPIES = (
    """
    CREATE TEMPORARY TABLE made ON COMMIT DROP AS
    SELECT t.number AS tenant_number, p.number AS profile_number, t.tenant_id,
           gen_random_uuid() AS profile_id, gen_random_uuid() AS version_id
    FROM (SELECT number, gen_random_uuid() AS tenant_id FROM generate_series(1, :tenants) AS number) AS t,
         generate_series(0, :each - 1) AS p (number)
    """,
    "INSERT INTO tenants (id, name) SELECT DISTINCT tenant_id, 'tenant-' || tenant_number FROM made",
    """
    INSERT INTO profiles (id, tenant_id, name, base_model_id)
    SELECT made.profile_id, made.tenant_id, 'p' || profile_number, base_model_id
    FROM made, profile_versions AS v WHERE v.id = :template
    """,
    """
    INSERT INTO profile_versions (id, tenant_id, profile_id, number, state, base_model_id, spec, fit_config, layers,
        embedding_layer, diagnostics, quality, quality_reasons, sha256, ready_at)
    SELECT made.version_id, made.tenant_id, made.profile_id, 1, state, base_model_id, spec, fit_config, layers,
        embedding_layer, diagnostics, quality, quality_reasons, sha256, ready_at
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
    INSERT INTO directions (version_id, layer, tenant_id, theta_help, theta_harm, theta, tau)
    SELECT made.version_id, layer, made.tenant_id, theta_help, theta_harm, theta, tau
    FROM made, directions AS d WHERE d.version_id = :template
    """,
    """
    CREATE TEMPORARY TABLE copied ON COMMIT DROP AS
    SELECT q.id AS original, gen_random_uuid() AS id, made.tenant_id, made.version_id
    FROM made, fit_queries AS q WHERE q.version_id = :template
    """,
    """
    INSERT INTO fit_queries (id, tenant_id, version_id, position, text, source, embedding, embedding_sketch)
    SELECT c.id, c.tenant_id, c.version_id, position, text, source, embedding, embedding_sketch
    FROM copied AS c JOIN fit_queries AS q ON q.id = c.original
    """,
    """
    INSERT INTO query_representations (query_id, tenant_id, version_id, layers, help, harm, plain)
    SELECT c.id, c.tenant_id, c.version_id, layers, help, harm, plain
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


def _keys(sessions: SessionFactory) -> list[str]:
    """A key for each of some tenants."""
    with UnitOfWork.open(sessions) as uow:
        found = uow.session.execute(
            text("SELECT id FROM tenants WHERE name <> 'template' ORDER BY id LIMIT :most"), {"most": ASKING_TENANTS}
        )
        return [create_key(uow, tenant, "member", "bench")[1] for (tenant,) in found.all()]


def _scans(sessions: SessionFactory) -> dict[str, int]:
    """Sequential scans so far of each table that is large."""
    time.sleep(11.0)  # a backend reports what it has done after 10 idle seconds at the latest
    statement = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE n_live_tup > :small"
    with sessions() as session:
        return {row.relname: row.seq_scan for row in session.execute(text(statement), {"small": SMALL})}


def _sizes(report: Report, sessions: SessionFactory) -> None:
    statement = """
        SELECT relname, reltuples, pg_table_size(oid) / 1048576.0, pg_indexes_size(oid) / 1048576.0
        FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples > 0
        ORDER BY pg_total_relation_size(oid) DESC LIMIT 7
    """
    with sessions() as session:
        for name, rows, table, indexes in session.execute(text(statement)):
            report.add(f"{name}, rows", rows)
            report.add("  table", float(table), "MiB")
            report.add("  indexes", float(indexes), "MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--profiles", type=int, default=100_000, help="how many (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("artifacts/bench"), help="folder of the JSON file")
    arguments = parser.parse_args()
    made = run(arguments.profiles)
    made.print()
    print(f"written to {made.save(arguments.out)}")
