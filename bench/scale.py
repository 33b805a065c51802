"""The service at the size of many users: `python -m bench.scale [--profiles 100000]`.

The embedded Postgres holds 10 profiles for each of many tenants, each with a ready, sample-conditional version of 10
fit queries, their representations and edits: copies of one that was really fitted, so every statement finds whole
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

import numpy as np
from sqlalchemy import text

from alignez_core.engines.fake.engine import FakeEngine
from api.app import create_app
from api.settings import ApiSettings
from bench.report import Report
from bench.scale_fill import HIDDEN_SIZE, LAYERS, PER_TENANT, QUERIES, fill, make_keys
from bench.scale_plans import SMALL, explain_hot
from bench.served import LineClient, serving
from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, make_session_factory
from telemetry.logs import configure_logs

ASKING_TENANTS = 200
REQUESTS = 600

Asked = tuple[str, str, str, dict[str, Any] | None]  #: key, method, path, body


def run(profiles: int = 100_000, plans: Path = Path("artifacts/bench/scale_plans.txt")) -> Report:
    """Fills the database and measures; whole query plans go to the file `plans`."""
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
        began = time.perf_counter()
        fill(sessions, profiles)
        report.add("filled in", time.perf_counter() - began, "s")
        keys = make_keys(sessions, ASKING_TENANTS)
        app = create_app(
            ApiSettings(port=0, auth_cache_s=60.0), engine=engine, session_factory=sessions, database=database
        )
        with serving(app) as port, LineClient("bench.scale_client", str(port)) as client:
            _measure(report, sessions, client, keys, engine.info.name)
        explain_hot(report, sessions, database, plans)
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
    made = run(arguments.profiles, arguments.out / "scale_plans.txt")
    made.print()
    print(f"written to {made.save(arguments.out)}")
