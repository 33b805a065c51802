"""One, two and three workers: `python -m bench.workers [--jobs 60]`.

Real Celery workers on the engine without a model, the embedded Redis and a real relay. Jobs are asked for by
`POST /v1/profiles` while no relay runs; then the relay starts, with every worker waiting. Jobs a second are counted
from the first claim to the last publication by the database's own clock.

- *full*: nothing but our own work, which takes processor time: it grows until the cores are full.
- *paced*: the engine takes its time for each token, as a model would; the workers wait for it and not for a processor,
  so jobs a second must grow with the workers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from bench.report import Report
from bench.roles import Roles, cpu_s
from bench.scale_fill import MODEL, SPEC
from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.service import create_key, create_tenant
from profiles.uow import SessionFactory, UnitOfWork, make_session_factory

COUNTS = (1, 2, 3)
#: Of one token. Enough that three workers together leave the two cores mostly idle.
STEP_S = 0.004
TENANTS = 4
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Fits:
    """What came of some jobs on one number of workers.

    Args:
        rate: jobs a second. cpu_ms: of one job, by part. cores: that all of it kept busy. asked: POSTs a second.
    """

    rate: float
    cpu_ms: Mapping[str, float]
    cores: float
    asked: float


def run(jobs: int = 60, paced_jobs: int = 30) -> Report:
    """Measures; prints a table by worker count, returns every figure."""
    report = Report("workers", f"{jobs} jobs of {len(SPEC['queries'])} queries, engine without a model")
    table = Table(title="workers: profiles made by number of workers", title_justify="left")
    for column in ("", *(str(count) for count in COUNTS), *(f"{count} ÷ 1" for count in COUNTS[1:])):
        table.add_column(column, justify="right" if column else "left")
    with (
        tempfile.TemporaryDirectory() as name,
        PostgresServer(Path(name) / "postgres") as postgres,
        RedisServer(Path(name) / "redis") as redis,
    ):
        migrate.upgrade(postgres.url)
        sessions = make_session_factory(postgres.url)
        keys = _keys(sessions)
        settings = {"ALIGNEZ_DATABASE_URL": postgres.url, "ALIGNEZ_BROKER_URL": redis.url}
        servers = {"Postgres": postgres.pid or 0, "Redis": redis.pid or 0}
        with Roles(Path(name), settings) as always:
            (port,) = always.apis(1, 0.0, 4096)
            for what, count, step_s in (("full", jobs, 0.0), ("paced", paced_jobs, STEP_S)):
                found: dict[int, Fits] = {}
                for workers in COUNTS:
                    with Roles(Path(name), settings) as roles:
                        pids = roles.workers(workers, f"{MODEL}&step_s={step_s}")
                        _fit(Path(name), settings, sessions, port, keys, 2 * workers, pids, servers)  # all warm
                        found[workers] = _fit(Path(name), settings, sessions, port, keys, count, pids, servers)
                _rows(report, table, what, found, judged=bool(step_s))
        sessions.kw["bind"].dispose()
        Console(width=max(120, Console().width)).print(table)
    return report


def _fit(
    folder: Path,
    settings: Mapping[str, str],
    sessions: SessionFactory,
    port: int,
    keys: Sequence[str],
    jobs: int,
    workers: Sequence[int],
    servers: Mapping[str, int],
) -> Fits:
    began = time.perf_counter()
    made = _ask(port, keys, jobs)
    asked = jobs / (time.perf_counter() - began)
    before = {"workers": cpu_s(workers), **{part: cpu_s([pid]) for part, pid in servers.items()}}
    with Roles(folder, settings) as roles:
        relay = roles.relay()
        before["relay"] = cpu_s([relay])  # its imports are done, its work begins
        seconds = _wait(sessions, made)
        pids = {"workers": workers, "relay": [relay], **{part: [pid] for part, pid in servers.items()}}
        spent = {part: cpu_s(of) - before[part] for part, of in pids.items()}
    busy = sum(spent.values()) / seconds
    return Fits(jobs / seconds, {part: s / jobs * 1e3 for part, s in spent.items()}, busy, asked)


def _ask(port: int, keys: Sequence[str], jobs: int) -> list[str]:
    """Ids of jobs asked for over HTTP, by the tenants in turn."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    ids = []
    for i in range(jobs):
        headers = {"Authorization": f"Bearer {keys[i % len(keys)]}", "Content-Type": "application/json"}
        body = json.dumps({"name": f"p-{time.monotonic_ns()}", **SPEC})
        connection.request("POST", "/v1/profiles", body, headers)
        reply = connection.getresponse()
        content = reply.read()
        if reply.status != 202:
            raise RuntimeError(f"{reply.status} {content[:500]!r}")
        ids.append(str(json.loads(content)["job"]["id"]))
    return ids


def _wait(sessions: SessionFactory, ids: Sequence[str]) -> float:
    """Seconds from the first claim to the last publication. Raises: RuntimeError: a job failed, or took too long."""
    statement = text(
        "SELECT count(*) FILTER (WHERE status = 'succeeded'), count(*) FILTER (WHERE status = 'failed'),"
        " extract(epoch FROM max(finished_at) - min(started_at)) FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))"
    )
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with sessions() as session:
            done, failed, seconds = session.execute(statement, {"ids": list(ids)}).one()
        if done == len(ids):
            return float(seconds)
        if failed or time.monotonic() > deadline:
            raise RuntimeError(f"{done} of {len(ids)} jobs are done, {failed} failed")
        time.sleep(0.25)


def _keys(sessions: SessionFactory) -> list[str]:
    with UnitOfWork.open(sessions) as uow:
        tenants = [create_tenant(uow, f"workers-{i}") for i in range(TENANTS)]
        return [create_key(uow, tenant.id, "member", "bench")[1] for tenant in tenants]


def _rows(report: Report, table: Table, what: str, found: Mapping[int, Fits], *, judged: bool) -> None:
    figures: dict[str, tuple[str, dict[int, float]]] = {
        "jobs/s": ("", {n: fits.rate for n, fits in found.items()}),
        **{
            f"{part}, a job": ("CPU ms", {n: fits.cpu_ms[part] for n, fits in found.items()})
            for part in ("workers", "Postgres", "relay", "Redis")
        },
        "cores busy": ("", {n: fits.cores for n, fits in found.items()}),
        "POST /v1/profiles, one after another": ("/s", {n: fits.asked for n, fits in found.items()}),
    }
    table.add_section()
    report.add_by_count(table, what, figures)
    if judged:
        for count in COUNTS[1:]:
            report.add(f"{what}, jobs/s, {count} ÷ 1", found[count].rate / found[1].rate, "", f"≥ {0.93 * count:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60, help="of each full measurement (default %(default)s)")
    parser.add_argument("--paced-jobs", type=int, default=30, help="of each paced one (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("artifacts/bench"), help="folder of the JSON file")
    arguments = parser.parse_args()
    made = run(arguments.jobs, arguments.paced_jobs)
    made.judged().print()
    print(f"written to {made.save(arguments.out)}")
