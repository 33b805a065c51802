"""Loads beyond the service's limits, on the real server and an embedded Postgres: `python -m bench burst [--quick]`.

Burst: one tenant lists its profiles 400 times, 150 at once, which is more than there are connections and threads. The
first burst also opens them. Flood: twelve chat prompts of 3.9 MB at once, one such dozen after another, each far over
the model's context. All must be refused, the memory of the API and its model must not grow, and `/health` must answer
meanwhile. Another process asks for it, one request after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from bench.client import ClientProcess, Task, ask
from bench.fits import new_tenant
from bench.processes import Processes, Running, database
from bench.report import Report
from bench.soak.judge import Watch
from cli.local_stack.broker import RedisServer

REQUESTS, PARALLEL = 400, 150
PROMPTS, CHARACTERS = 12, 3_900_000


def run(quick: bool = False) -> Report:
    """Latencies of several bursts; status, memory and latency during the flood."""
    report = Report("burst", f"{REQUESTS} × GET /v1/profiles, {PARALLEL} in parallel; long prompts", ("p50", "p95"))
    with database() as data, RedisServer(data.folder / "redis") as redis, ClientProcess() as client:
        _, key = new_tenant(data.sessions, "burst")
        settings = {"ALIGNEZ_DATABASE_URL": data.url, "ALIGNEZ_BROKER_URL": redis.url,
                    "ALIGNEZ_API_LOG_LEVEL": "warning"}  # fmt: skip
        with Processes(data.folder, settings) as processes:
            api = processes.start("api")
            for i in range(1 if quick else 3):
                # A client for each connection: with 150 in one pool, httpcore takes 13 ms of processor time a request.
                taken = client.run(Task([api.url] * PARALLEL, [(key, "GET", "/v1/profiles", None)] * REQUESTS))
                report.add(f"burst {i + 1}", *taken.percentiles_ms, unit="ms")
                report.add("  answered", len(taken.each) / taken.seconds, unit="requests/s")
                report.add("  the client's own (included)", taken.cpu_s / REQUESTS * 1e3, unit="ms a request")
            _flood(report, api, key, client, 2.0 if quick else 10.0)
    return report


def _flood(report: Report, api: Running, key: str, client: ClientProcess, seconds: float) -> None:
    watch, pids, statuses = Watch(), {"API": api.process.pid}, list[int]()
    watch.sample(0.0, pids)
    with ThreadPoolExecutor(1) as beside:
        probing = beside.submit(client.run, Task([api.url], [(key, "GET", "/health", None)], seconds=seconds))
        while not probing.done():
            statuses += asyncio.run(_dozen(api.url, key, lambda: watch.sample(0.0, pids)))
        taken = probing.result()
    before, *during = watch.series["API"].memory
    report.add(f"prompts of {CHARACTERS / 1e6:g} MB refused", statuses.count(400), least=PROMPTS)
    report.add("  not refused", len(statuses) - statuses.count(400), most=0)
    report.add("  memory before, and its peak above that", before, max(during) - before, unit="MiB", most=200)
    report.add("  /health meanwhile", *taken.percentiles_ms, unit="ms", most=100)
    report.add("  its slowest", max(taken.each) * 1e3, unit="ms", most=500)


async def _dozen(url: str, key: str, sample: Callable[[], None]) -> list[int]:
    """Statuses of twelve prompts; takes samples until the last reply."""
    body = {"messages": [{"role": "user", "content": "long " * (CHARACTERS // 5)}]}
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        asking = [asyncio.create_task(ask(client, (key, "POST", "/v1/chat/completions", body))) for _ in range(PROMPTS)]
        while not all(task.done() for task in asking):
            sample()
            await asyncio.sleep(0.02)
    return [task.result().status for task in asking]
