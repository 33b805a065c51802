"""One, two and three Celery workers on the engine without a model, with the embedded Redis and a real relay.

`POST /v1/profiles` creates the jobs while no relay runs; then the relay starts, with every worker idle. Jobs per second
are counted from the first claim to the last publication. *Full*: only the service's own work. *Paced*: a token takes
4 ms, so jobs per second must grow with the workers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence

import httpx
from sqlalchemy import text

from bench.fits import new_tenant
from bench.processes import Database, Processes, cpu_s, database
from bench.report import Report, count_columns
from bench.scale.fill import MODEL, SPEC
from cli.local_stack.broker import RedisServer

COUNTS = (1, 2, 3)
_PATIENCE_S = 300.0
_numbers = itertools.count()


def run(jobs: int) -> Report:
    """Measures both loads for every number of workers; the paced one with half of the jobs."""
    report = Report("workers", f"{jobs} jobs, engine without a model", count_columns(COUNTS))
    with database() as data, RedisServer(data.folder / "redis") as redis:
        settings = {"ALIGNEZ_DATABASE_URL": data.url, "ALIGNEZ_BROKER_URL": redis.url}
        servers = {"Postgres": [data.pid], "Redis": [redis.pid or 0]}
        with Processes(data.folder, {**settings, "ALIGNEZ_API_ROLE": "control"}) as always:
            url = always.start("api").url
            for what, count, step_s in (("full", jobs, 0.0), ("paced", max(3, jobs // 2), 0.004)):
                found: dict[int, dict[str, float]] = {}
                for workers in COUNTS:
                    with Processes(data.folder, settings) as processes:
                        model = f"{MODEL}&step_s={step_s}"
                        running = processes.start_all(workers, "worker", ALIGNEZ_WORKER_MODEL=model)
                        pids = {"workers": [one.process.pid for one in running], **servers}
                        _fits(data, url, settings, 2 * workers, pids)  # all warm
                        found[workers] = _fits(data, url, settings, count, pids)
                report.add_by_count(what, found)
                for n in COUNTS[1:] if step_s else ():
                    ratio = found[n]["jobs/s"] / found[1]["jobs/s"]
                    report.add(f"{what}, jobs/s, {n} ÷ 1", ratio, least=0.93 * n)
    return report


def _fits(
    data: Database, url: str, settings: dict[str, str], jobs: int, pids: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Jobs per second, busy cores, and processor milliseconds per job for each part."""
    asked = _ask(data, url, jobs)
    before = {part: cpu_s(of) for part, of in pids.items()}
    with Processes(data.folder, settings) as processes:
        pids = {**pids, "relay": [processes.start("relay").process.pid]}
        before["relay"] = cpu_s(pids["relay"])  # after its imports, before its work
        seconds = _wait(data, asked)
        spent = {part: cpu_s(of) - before[part] for part, of in pids.items()}
    per_job = {f"{part}, CPU ms a job": s / jobs * 1e3 for part, s in spent.items()}
    return {"jobs/s": jobs / seconds, "cores busy": sum(spent.values()) / seconds, **per_job}


def _ask(data: Database, url: str, jobs: int) -> list[str]:
    """Creates jobs over HTTP for four tenants in turn; returns their ids."""
    keys = [new_tenant(data.sessions, f"workers-{next(_numbers)}")[1] for _ in range(4)]
    ids = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for i in range(jobs):
            headers = {"Authorization": f"Bearer {keys[i % len(keys)]}"}
            reply = client.post("/v1/profiles", json={"name": f"p-{i}", **SPEC}, headers=headers).raise_for_status()
            ids.append(str(reply.json()["job"]["id"]))
    return ids


def _wait(data: Database, ids: Sequence[str]) -> float:
    """Seconds from the first claim to the last publication. Raises: RuntimeError: a job failed, or took too long."""
    statement = text(
        "SELECT count(*) FILTER (WHERE status = 'succeeded'), count(*) FILTER (WHERE status = 'failed'),"
        " extract(epoch FROM max(finished_at) - min(started_at)) FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))"
    )
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with data.owner() as session:
            done, failed, seconds = session.execute(statement, {"ids": list(ids)}).one()
        if done == len(ids):
            return float(seconds)
        if failed or time.monotonic() > deadline:
            raise RuntimeError(f"{done} of {len(ids)} jobs are done, {failed} failed")
        time.sleep(0.25)
