"""One, two and three API processes: `python -m bench.replicas [--profiles 100000]`.

A database as full as `bench.scale` makes it, real API processes on the engine without a model, and a client that
spreads requests over the first one, two or three of them. On one machine API, Postgres and client share the cores, so
requests a second can grow only until these are full. Three measurements tell the replicas from the machine:

- *full*: 16 connections a replica, each asking again at once. What the machine gives.
- *steady*: one rate for all numbers of replicas, about half of what one replica can do, at random moments. A replica
  more must cost nothing: the processor time of a request stays the same in API and Postgres. Latency is this one's.
- *paced*: each replica's engine is as slow as a model (8 places, a token every 40 ms), so the engine and not the
  processor is what a replica has too little of, as in production. Requests a second must grow with the replicas.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.report import Report
from bench.roles import Roles, cpu_s
from bench.scale_fill import PER_TENANT, QUERIES, fill, make_keys
from bench.served import LineClient
from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.uow import make_session_factory
from telemetry.logs import configure_logs

COUNTS = (1, 2, 3)
CONNECTIONS = 16
ASKING_TENANTS = 200
STEP_S, PLACES, TOKENS = 0.04, 8, 16
#: Different requests of one kind; drawn once, asked in turn.
DRAWN = 2000
#: The steady rate as a share of what one replica can do.
STEADY = 0.5

Asked = tuple[str, str, str, dict[str, Any] | None]  #: key, method, path, body


@dataclass(frozen=True)
class Load:
    """One kind of request on one number of replicas.

    Args:
        rate: answers a second. p50, p95, p99: ms. cpu_ms: of one request, by part. cores: that all of it kept busy.
    """

    rate: float
    p50: float
    p95: float
    p99: float
    cpu_ms: Mapping[str, float]
    cores: float


def load_of(taken_s: Sequence[float], seconds: float, cpu_s: Mapping[str, float]) -> Load:
    """What was measured, from the seconds of each request, those of all, and the processor's by part."""
    p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(taken_s, [50, 95, 99]))
    count = len(taken_s)
    per_request = {part: spent / count * 1e3 for part, spent in cpu_s.items()}
    return Load(count / seconds, p50, p95, p99, per_request, sum(cpu_s.values()) / seconds)


def ratios(loads: Mapping[int, Load], part: str | None = None) -> dict[int, float]:
    """By number of replicas, ÷ the one of one replica: answers a second, or a part's processor time of a request."""
    values = {count: load.rate if part is None else load.cpu_ms[part] for count, load in loads.items()}
    return {count: value / values[1] for count, value in values.items() if count > 1}


def run(profiles: int = 100_000, seconds: float = 6.0) -> Report:
    """Measures; prints a table by replica count, returns every figure."""
    configure_logs("warning", "json")
    report = Report(
        "replicas",
        f"{profiles:,} profiles, {profiles * QUERIES:,} fit queries; {CONNECTIONS} connections a replica, "
        f"{seconds:g} s each; engine without a model",
    )
    with tempfile.TemporaryDirectory() as name, PostgresServer(Path(name) / "postgres") as postgres:
        migrate.upgrade(postgres.url)
        sessions = make_session_factory(postgres.url)
        fill(sessions, profiles)
        keys = make_keys(sessions, ASKING_TENANTS)
        sessions.kw["bind"].dispose()
        table = _table()
        for step_s, places in ((0.0, 4096), (STEP_S, PLACES)):
            with (
                Roles(Path(name), {"ALIGNEZ_DATABASE_URL": postgres.url}) as roles,
                LineClient("bench.replica_client") as client,
            ):
                measured = _Machine(roles.apis(max(COUNTS), step_s, places), postgres.pid or 0, client, seconds)
                if step_s:
                    _paced(report, table, measured, keys)
                else:
                    _fast(report, table, measured, keys)
        Console(width=max(130, Console().width)).print(table)
    return report


class _Machine:
    """The processes, and one way to put them under load."""

    def __init__(self, apis: Mapping[int, int], postgres: int, client: LineClient, seconds: float) -> None:
        self._apis = apis
        self._postgres = postgres
        self._client = client
        self.seconds = seconds

    def ask(self, requests: Sequence[Asked], replicas: int, rate: float | None = None, seconds: float = 0.0) -> Load:
        ports = list(self._apis)[:replicas]
        parts = {"API": [self._apis[p] for p in ports], "Postgres": [self._postgres], "client": [self._client.pid]}
        before = {part: cpu_s(pids) for part, pids in parts.items()}
        task = {
            "ports": ports,
            "requests": requests,
            "connections": CONNECTIONS,
            "seconds": seconds or self.seconds,
            "rate": rate,
        }
        told = self._client.ask(task)
        spent = {part: cpu_s(pids) - before[part] for part, pids in parts.items()}
        return load_of(told["taken"], told["seconds"], spent)


def _fast(report: Report, table: Table, machine: _Machine, keys: Sequence[str]) -> None:
    for kind, requests in _kinds(keys, tokens=1).items():
        for replicas in COUNTS:  # connections, keys, statements and first versions
            machine.ask(requests, replicas, seconds=1.5)
        full = {replicas: machine.ask(requests, replicas) for replicas in COUNTS}
        rate = full[1].rate * STEADY
        steady = {replicas: machine.ask(requests, replicas, rate) for replicas in COUNTS}
        table.add_section()
        _rows(report, table, f"{kind}, full", full, parts=("API", "Postgres", "client"))
        _rows(report, table, f"{kind}, steady", steady, parts=("API", "Postgres", "client"))
        for part in ("API", "Postgres"):
            found = ratios(steady, part)
            for replicas in COUNTS[1:]:
                must = "0.9 to 1.1" if part == "API" else ""
                report.add(f"{kind}, steady, {part} ms a request, {replicas} ÷ 1", found[replicas], "", must)
        if kind.startswith("GET"):
            report.add(f"{kind}, steady, p95 on 1", steady[1].p95, "ms", "≤ 20")


def _paced(report: Report, table: Table, machine: _Machine, keys: Sequence[str]) -> None:
    for kind, requests in _kinds(keys, tokens=TOKENS).items():
        if kind.startswith("GET"):
            continue
        machine.ask(requests, max(COUNTS), seconds=1.5)
        paced = {replicas: machine.ask(requests, replicas, seconds=2 * machine.seconds) for replicas in COUNTS}
        table.add_section()
        _rows(report, table, f"{kind}, paced", paced, parts=("API", "Postgres", "client"))
        for replicas, ratio in ratios(paced).items():
            report.add(f"{kind}, paced, answers/s, {replicas} ÷ 1", ratio, "", f"≥ {0.93 * replicas:.2f}")


def _kinds(keys: Sequence[str], tokens: int) -> dict[str, list[Asked]]:
    draw = random.Random(0)
    question = {"messages": [{"role": "user", "content": "How do I start hiking?"}], "max_tokens": tokens}

    def some(method: str, path: str, model: str | None = None) -> list[Asked]:
        made: list[Asked] = []
        for _ in range(DRAWN):
            name = f"p{draw.randrange(PER_TENANT)}"
            body = None if model is None else {"model": model.replace("NAME", name), **question, "ignore_eos": True}
            made.append((draw.choice(keys), method, path.replace("NAME", name), body))
        return made

    chat = "/v1/chat/completions"
    return {
        "GET /v1/profiles": some("GET", "/v1/profiles"),
        "GET /v1/profiles/{name}": some("GET", "/v1/profiles/NAME"),
        "an answer, base model": some("POST", chat, "fake"),
        "an answer, sample-conditional": some("POST", chat, "fake@NAME"),
    }


def _table() -> Table:
    table = Table(title="replicas: by number of API processes", title_justify="left")
    for column in ("", *(str(count) for count in COUNTS), *(f"{count} ÷ 1" for count in COUNTS[1:])):
        table.add_column(column, justify="right" if column else "left")
    return table


def _rows(report: Report, table: Table, what: str, loads: Mapping[int, Load], parts: Sequence[str]) -> None:
    figures: dict[str, tuple[str, dict[int, float]]] = {
        "answers/s": ("", {n: load.rate for n, load in loads.items()}),
        "p50": ("ms", {n: load.p50 for n, load in loads.items()}),
        "p95": ("ms", {n: load.p95 for n, load in loads.items()}),
        "p99": ("ms", {n: load.p99 for n, load in loads.items()}),
        **{f"{part}, a request": ("CPU ms", {n: load.cpu_ms[part] for n, load in loads.items()}) for part in parts},
        "cores busy": ("", {n: load.cores for n, load in loads.items()}),
    }
    report.add_by_count(table, what, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.replicas", description=__doc__)
    parser.add_argument("--profiles", type=int, default=100_000, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("artifacts/bench"), help="folder of the JSON file")
    arguments = parser.parse_args()
    made = run(arguments.profiles, arguments.seconds)
    made.judged().print()
    print(f"written to {made.save(arguments.out)}")
