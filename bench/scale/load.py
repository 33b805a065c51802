"""HTTP latency among many profiles, and scaling with 1 to 3 API processes, on the engine without a model.

API, Postgres and client share the machine's cores, so three loads separate the effect of replicas from that of the
machine. *Full*: 16 connections to each replica, in a closed loop. *Steady*: the same rate for all numbers of replicas,
half of the capacity of one, at random times; the processor time of a request must stay the same. *Paced*: each engine
is as slow as a model (8 places, a token every 40 ms), as in production; answers per second must grow.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.client import ClientProcess, Request, Task
from bench.processes import Database, Processes, Running, cpu_s
from bench.report import Report, count_columns
from bench.scale.fill import PER_TENANT

COUNTS = (1, 2, 3)
CONNECTIONS = 16
STEP_S, PLACES, TOKENS = 0.04, 8, 16


def reads(data: Database, keys: Sequence[str], requests: int, title: str) -> Report:
    """Latency of one API process, less the client's own processor time."""
    report = Report("scale", f"{title}; {requests} requests of each kind", ("p50", "p95"))
    with _processes(data) as processes, ClientProcess() as client:
        url = processes.start("api", ["bench.scale.fake_api", "0", "4096"]).url
        found = {}
        for kind, asked in _kinds(keys, 1, requests).items():
            client.run(Task([url], asked[:20]))  # connections, keys and statements
            taken = client.run(Task([url], asked))
            own_ms = taken.cpu_s / requests * 1e3
            found[kind] = [ms - own_ms for ms in taken.percentiles_ms]
            report.add(kind, *found[kind], unit="ms", most=20 if kind.startswith("GET") else None)
            report.add("  the client's own (subtracted)", own_ms, unit="ms")
        base, conditional = found["an answer, base model"], found["an answer, sample-conditional"]
        added = [value - base[0] for value in conditional]
        report.add("added by a sample-conditional profile", *added, unit="ms", most=10)
    return report


def replicas(data: Database, keys: Sequence[str], seconds: float, title: str) -> Report:
    """Full load and a steady rate, then slow engines, by number of API processes."""
    report = Report("replicas", f"{title}; {CONNECTIONS} connections each, {seconds:g} s", count_columns(COUNTS))
    for step_s in (0.0, STEP_S):
        with _processes(data) as processes, ClientProcess() as client:
            module = ["bench.scale.fake_api", str(step_s), str(PLACES if step_s else 4096)]
            machine = _Machine(processes.start_all(max(COUNTS), "api", module), data.pid, client, seconds)
            for kind, asked in _kinds(keys, TOKENS if step_s else 1, 2000).items():
                machine.loads(asked, share=0.25)  # connections, keys, statements and first versions
                if not step_s:
                    _fast(report, machine, kind, asked)
                elif not kind.startswith("GET"):
                    _paced(report, machine, kind, asked)
    return report


def _processes(data: Database) -> Processes:
    return Processes(data.folder, {"ALIGNEZ_DATABASE_URL": data.url, "ALIGNEZ_API_LOG_LEVEL": "warning"})


def _kinds(keys: Sequence[str], tokens: int, count: int) -> dict[str, list[Request]]:
    draw = random.Random(0)
    question = {"messages": [{"role": "user", "content": "How do I start hiking?"}], "max_tokens": tokens}

    def some(method: str, path: str, model: str | None = None) -> list[Request]:
        made: list[Request] = []
        for _ in range(count):
            name = f"p{draw.randrange(PER_TENANT)}"
            body = None if model is None else {"model": model.format(name), **question, "ignore_eos": True}
            made.append((draw.choice(keys), method, path.format(name), body))
        return made

    return {
        "GET /v1/profiles": some("GET", "/v1/profiles"),
        "GET /v1/profiles/{name}": some("GET", "/v1/profiles/{}"),
        "GET /v1/profiles/{name}/versions/1": some("GET", "/v1/profiles/{}/versions/1"),
        "an answer, base model": some("POST", "/v1/chat/completions", "fake"),
        "an answer, sample-conditional": some("POST", "/v1/chat/completions", "fake@{}"),
    }


@dataclass(frozen=True)
class _Machine:
    apis: Sequence[Running]
    postgres: int
    client: ClientProcess
    seconds: float

    def loads(self, requests: Sequence[Request], rate: float = 0.0, share: float = 1.0) -> dict[int, dict[str, float]]:
        """Figures by number of replicas, each measured for a share of the seconds."""
        return {count: self._load(self.apis[:count], requests, rate, share * self.seconds) for count in COUNTS}

    def _load(
        self, apis: Sequence[Running], requests: Sequence[Request], rate: float, seconds: float
    ) -> dict[str, float]:
        parts = {"API": [api.process.pid for api in apis], "Postgres": [self.postgres]}
        before = {part: cpu_s(pids) for part, pids in parts.items()}
        taken = self.client.run(Task([api.url for api in apis], requests, CONNECTIONS, seconds, rate))
        spent = {part: cpu_s(pids) - before[part] for part, pids in parts.items()} | {"client": taken.cpu_s}
        p50, p95 = taken.percentiles_ms
        count, busy = len(taken.each), sum(spent.values()) / taken.seconds
        per_request = {f"{part}, CPU ms": s / count * 1e3 for part, s in spent.items()}
        return {"answers/s": count / taken.seconds, "p50, ms": p50, "p95, ms": p95, "cores busy": busy, **per_request}


def _fast(report: Report, machine: _Machine, kind: str, requests: Sequence[Request]) -> None:
    full = machine.loads(requests)
    steady = machine.loads(requests, rate=full[1]["answers/s"] / 2)
    report.add_by_count(f"{kind}, full", full)
    report.add_by_count(f"{kind}, steady", steady)
    for count in COUNTS[1:]:
        ratio = steady[count]["API, CPU ms"] / steady[1]["API, CPU ms"]
        report.add(f"{kind}, steady, API ms of a request, {count} ÷ 1", ratio, least=0.9, most=1.1)
    if kind.startswith("GET"):
        report.add(f"{kind}, steady, p95 on 1", steady[1]["p95, ms"], unit="ms", most=20)


def _paced(report: Report, machine: _Machine, kind: str, requests: Sequence[Request]) -> None:
    paced = machine.loads(requests, share=2.0)
    report.add_by_count(f"{kind}, paced", paced)
    for count in COUNTS[1:]:
        ratio = paced[count]["answers/s"] / paced[1]["answers/s"]
        report.add(f"{kind}, paced, answers/s, {count} ÷ 1", ratio, least=0.93 * count)
