"""What the HTTP service costs on top of the engine: `python -m bench.service`.

One process holds a real uvicorn (in a thread) and, as deployed, the engine's model is in a process of its own
(`ProcessEngine`); a third process is the client, which speaks HTTP/1.1 over plain asyncio streams, so that measuring
costs as little as can be. "Engine alone" is a `TransformersEngine` in one process with its callers, without HTTP; what
a process of its own wins or loses is a row of its own. All are measured in turn, `ROUNDS` times, and ratios are of
neighbours in time, because a shared machine's speed drifts.

Throughput: `STREAMS` clients at once, each with some requests one after another; tokens per second from the first
request to the last token. "Bare" is as many loops over `engine.stream` of the same rows in one event loop, so the ratio
is what HTTP, JSON, accounting and the client's share of the machine cost. Two loads: a steady one, `LENGTHS` tokens an
answer, so that requests begin and end at their own times as users' do; and bursts, all answers of the same length, so
that all 64 end in one moment and the engine waits for the 64 requests that follow.

Time to first token: one request after another on a kept-alive connection, from writing the request to the event with
the first text, against `engine.stream` of the same row, prompt rendered and tokenised in both. A sample-conditional
profile's share is its query embedding (a forward pass, which the engine alone does not make) and two short
transactions.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.engines.process.engine import ProcessEngine
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.models import persona_nano
from api.app import create_app
from api.settings import ApiSettings
from bench.report import Report
from bench.served import LineClient, serving
from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.fitting.request import request_fit
from profiles.service import Caller, ModelFacts, create_key, create_tenant, promote
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, UnitOfWork, make_session_factory
from telemetry.logs import configure_logs
from worker.engine import LoadedEngine
from worker.job import JobOptions
from worker.runner import JobRunner

STREAMS = 64
ROUNDS = 3
LENGTHS = (48, 144)
_STEADY_ANSWERS, _BURST_ANSWERS, _BURST_TOKENS = 4, 2, 96
FIRST_TOKENS = 60

#: Each client's query and how long its answers are, one after another.
Load = list[tuple[str, list[int]]]


def run() -> Report:
    """Measures both figures for the bare base model, a global and a sample-conditional profile."""
    configure_logs("warning", "json")
    alone = TransformersEngine.load(persona_nano.MODEL_DIR, max_slots=STREAMS, threads=1)
    engine = ProcessEngine.load(persona_nano.MODEL_DIR, max_slots=STREAMS, threads=1)
    with alone, engine, tempfile.TemporaryDirectory() as folder, PostgresServer(Path(folder)) as postgres:
        migrate.upgrade(postgres.url)
        database = DatabaseSettings(database_url=postgres.url)
        sessions = make_session_factory(database)
        key = _profiles(sessions, engine)
        settings = ApiSettings(role="inference", port=0, max_running=STREAMS)
        app = create_app(settings, engine=engine, session_factory=sessions, database=database)
        with serving(app) as port, _Client(port, key, engine.info.name) as client:
            report = _measure(alone, engine, client)
        sessions.kw["bind"].dispose()
    return report


def _measure(engine: TransformersEngine, apart: ProcessEngine, client: _Client) -> Report:
    report = Report(
        "service",
        f"{engine.info.name}, {STREAMS} streams, {ROUNDS} rounds; steady: {_STEADY_ANSWERS} answers each of "
        f"{LENGTHS[0]} to {LENGTHS[1]} tokens; bursts: {_BURST_ANSWERS} of {_BURST_TOKENS}; "
        f"time to first token p50 of {FIRST_TOKENS} requests a round",
    )
    queries = persona_nano.held_out_queries()[:STREAMS]
    draw = random.Random(0)
    loads: dict[str, Load] = {
        "steady": [(query, [draw.randint(*LENGTHS) for _ in range(_STEADY_ANSWERS)]) for query in queries],
        "bursts": [(query, [_BURST_TOKENS] * _BURST_ANSWERS) for query in queries],
    }
    models = {"base model": "", "global profile": "@global", "conditional profile": "@conditional"}
    for suffix in models.values():  # connections, key cache, edits, allocator
        client.throughput(loads["bursts"], suffix)
        client.first_tokens(queries[:5], suffix)
    _bare_throughput(engine, loads["bursts"])
    _bare_throughput(apart, loads["bursts"])
    own_process: list[float] = []
    ratios: dict[tuple[str, str], list[float]] = {(load, name): [] for load in loads for name in models}
    added: dict[str, list[float]] = {name: [] for name in models}
    bare_speed, bare_first = [], []
    for _ in range(ROUNDS):
        for name, suffix in models.items():
            for kind, load in loads.items():
                before = _bare_throughput(engine, load)
                served = client.throughput(load, suffix)
                after = _bare_throughput(engine, load)
                ratios[kind, name].append(served / ((before + after) / 2))
                bare_speed += [before, after] if kind == "steady" else []
            own_process.append(_bare_throughput(apart, load) / after)
            probe = (queries * 2)[:FIRST_TOKENS]
            first = statistics.median(_bare_first_tokens(engine, probe))
            bare_first.append(first)
            added[name].append(statistics.median(client.first_tokens(probe, suffix)) - first)
    report.add("engine alone, throughput, steady", statistics.median(bare_speed), "tokens/s")
    report.add("engine alone, time to first token", statistics.median(bare_first) * 1e3, "ms")
    report.add("own process ÷ same process, engine alone", statistics.median(own_process))
    for (kind, name), values in ratios.items():
        must = "≥ 0.95" if kind == "steady" else ""
        report.add(f"service ÷ engine throughput, {kind}, {name}", statistics.median(values), "", must)
        report.add("  lowest and", min(values), "")
        report.add("  highest round", max(values), "")
    for name in models:
        must = "≤ 5" if name != "conditional profile" else ""
        report.add(f"added to time to first token, {name}", statistics.median(added[name]) * 1e3, "ms", must)
    return report


def _row(engine: Engine, query: str, max_tokens: int, seed: int = 0) -> GenerationRequest:
    prompt = engine.tokenize(engine.prompt_format.render([{"role": "user", "content": query}]))
    return GenerationRequest(prompt, max_tokens=max_tokens, seed=seed, ignore_eos=True)


def _bare_throughput(engine: Engine, load: Load) -> float:
    """Tokens per second of one loop over `stream` per query."""
    rows = [[_row(engine, query, length, i) for length in lengths] for i, (query, lengths) in enumerate(load)]

    async def repeat(answers: list[GenerationRequest]) -> int:
        tokens = 0
        for row in answers:
            async for chunk in engine.stream(row):
                tokens += len(chunk.token_ids)
        return tokens

    async def together() -> int:
        return sum(await asyncio.gather(*(repeat(answers) for answers in rows)))

    started = time.perf_counter()
    tokens = asyncio.run(together())
    return tokens / (time.perf_counter() - started)


def _bare_first_tokens(engine: Engine, queries: Sequence[str]) -> list[float]:
    """Seconds to the first text of each query, one after another."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        stream = engine.stream(_row(engine, query, 4))
        for chunk in stream:
            if chunk.text:
                seconds.append(time.perf_counter() - started)
                break
        stream.close()
    return seconds


def _profiles(sessions: SessionFactory, engine: Engine) -> str:
    """Fits the two profiles; returns a key."""
    persona = {"preferred": persona_nano.PERSONAS[0].preferred, "dispreferred": persona_nano.PERSONAS[0].dispreferred}
    with UnitOfWork.open(sessions) as uow:
        tenant = create_tenant(uow, "bench")
        row, key = create_key(uow, tenant.id, "member", "bench")
        caller = Caller(row.id, tenant.id, row.role)
        jobs: list[UUID] = []
        for name, fit in (("global", {"method": "distill", "contrast": 1.0}), ("conditional", {"method": "alignez"})):
            spec = {"persona": persona, "fit": {**fit, "tune_queries": 0, "held_out_queries": 4}}
            jobs.append(request_fit(uow, caller, spec, name=name).job.id)
    info = engine.info
    facts = ModelFacts(
        info.name, "persona-nano (shipped)", info.fingerprint, info.n_layers, info.hidden_size, info.context_length,
        info.prompt_format,
    )  # fmt: skip
    runner = JobRunner(
        sessions,
        LoadedEngine(engine, facts, tuple(persona_nano.query_bank()[:200])),
        JobOptions("bench", 60.0, 600.0, 1, 5.0, 256),
    )
    for job in jobs:
        outcome = runner.run(job)
        if outcome != "succeeded":
            raise RuntimeError(f"the fit of the measured profile ended as {outcome!r}")
    with UnitOfWork.open(sessions) as uow:
        for name in ("global", "conditional"):
            promote(uow, caller, name, 1, force=True)  # four queries prove little
    return key


class _Client(LineClient):
    """The client process, and what it is asked."""

    def __init__(self, port: int, key: str, model: str) -> None:
        super().__init__("bench.service_client", str(port), key)
        self._model = model

    def throughput(self, load: Load, suffix: str) -> float:
        """Tokens per second of all answers, one client for each query."""
        bodies = [
            [self._body(query, suffix, length, i) for length in lengths] for i, (query, lengths) in enumerate(load)
        ]
        seconds: float = self.ask(["throughput", bodies])
        return sum(sum(lengths) for _, lengths in load) / seconds

    def first_tokens(self, queries: Sequence[str], suffix: str) -> list[float]:
        """Seconds to the first text of each query, one after another."""
        seconds: list[float] = self.ask(["first_tokens", [self._body(query, suffix, 4, 0) for query in queries]])
        return seconds

    def _body(self, query: str, suffix: str, tokens: int, seed: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": query}]
        return {"model": self._model + suffix, "messages": messages, "stream": True, "max_tokens": tokens,
                "seed": seed, "ignore_eos": True}  # fmt: skip


if __name__ == "__main__":
    run().print()
