"""Cost of the HTTP service on top of the engine: `python -m bench service [--quick]`.

Measures a real `alignez api` process with a client process, in turn with the same model in this process without HTTP.
Ratios are between neighbours in time, because a shared machine drifts. Throughput: tokens per second of 64 clients. A
steady load has answers of 48 to 144 tokens; in bursts all answers end at the same moment. The client shares the cores,
so its processor time ÷ cores is subtracted. Time to first token: sequential requests, less the client's processor time.
A sample-conditional profile adds a forward pass for the query's embedding.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time

from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.models import persona_nano
from bench.client import ClientProcess, Task
from bench.fits import fit, new_tenant, runner
from bench.processes import Database, Processes, database
from bench.report import Report
from telemetry.logs import configure_logs

Load = list[tuple[str, int]]  #: query and answer tokens of each request
PROFILES = {"base model": "", "global profile": "@global", "conditional profile": "@conditional"}


def run(quick: bool = False) -> Report:
    """Measures the base model, a global and a sample-conditional profile."""
    configure_logs("warning", "json")
    streams, rounds = (8, 1) if quick else (64, 3)
    queries, draw = (persona_nano.held_out_queries() * 2)[:streams], random.Random(0)
    steady: Load = [(query, draw.randint(48, 144)) for query in queries * 4]
    bursts: Load = [(query, 96) for query in queries * 2]
    probe: Load = [(query, 1) for query in queries]
    report = Report("service", f"persona-nano behind HTTP, {streams} streams, medians of {rounds} rounds")
    throughput: dict[str, list[tuple[float, float]]] = {}
    added: dict[str, list[float]] = {}
    with database() as data, TransformersEngine.load(persona_nano.MODEL_DIR, max_slots=64, threads=1) as engine:
        key = _fitted(data, engine)
        settings = {"ALIGNEZ_DATABASE_URL": data.url, "ALIGNEZ_API_ROLE": "inference", "ALIGNEZ_API_THREADS": "1",
                    "ALIGNEZ_API_LOG_LEVEL": "warning"}  # fmt: skip
        with Processes(data.folder, settings) as processes, ClientProcess() as client:
            url = processes.start("api").url
            for suffix in PROFILES.values():  # warm-up: connections, key cache, edits, allocator
                client.run(_task(url, key, engine.info.name + suffix, bursts, streams))
            _alone(engine, bursts, streams)
            for _ in range(rounds):
                for name, suffix in PROFILES.items():
                    model = engine.info.name + suffix
                    for kind, load in (("steady", steady), ("bursts", bursts)):
                        before = _alone(engine, load, streams)
                        taken = client.run(_task(url, key, model, load, streams))
                        alone_s = (before + _alone(engine, load, streams)) / 2
                        net_s = taken.seconds - taken.cpu_s / (os.cpu_count() or 1)
                        pair = alone_s / net_s, alone_s / taken.seconds
                        throughput.setdefault(f"{kind}, {name}", []).append(pair)
                    taken = client.run(_task(url, key, model, probe, 1))
                    first = statistics.median(taken.first) - taken.cpu_s / len(probe)
                    added.setdefault(name, []).append(first - _alone_first_s(engine, probe))
    for what, pairs in throughput.items():
        net, gross = zip(*pairs, strict=True)
        least = 0.95 if what.startswith("steady") and "conditional" not in what else None
        report.add(f"service ÷ engine throughput, {what}", statistics.median(net), least=least)
        report.add("  lowest round", min(net))
        report.add("  the client's processor time included", statistics.median(gross))
    for name, values in added.items():
        most = None if "conditional" in name else 5.0
        report.add(f"added to time to first token, {name}", statistics.median(values) * 1e3, unit="ms", most=most)
    return report


def _task(url: str, key: str, model: str, load: Load, connections: int) -> Task:
    common = {"model": model, "stream": True, "ignore_eos": True}
    bodies = (
        {**common, "messages": [{"role": "user", "content": query}], "max_tokens": tokens, "seed": seed}
        for seed, (query, tokens) in enumerate(load)
    )
    return Task([url], [(key, "POST", "/v1/chat/completions", body) for body in bodies], connections)


def _rows(engine: Engine, load: Load) -> list[GenerationRequest]:
    render, tokenize = engine.prompt_format.render, engine.tokenize
    return [
        GenerationRequest(tokenize(render([{"role": "user", "content": query}])), tokens, seed=seed, ignore_eos=True)
        for seed, (query, tokens) in enumerate(load)
    ]


def _alone(engine: Engine, load: Load, streams: int) -> float:
    """Seconds that as many concurrent loops over `engine.stream` take."""
    rows = iter(_rows(engine, load))

    async def again() -> None:
        for row in rows:
            async for _ in engine.stream(row):
                pass

    async def together() -> None:
        await asyncio.gather(*(again() for _ in range(streams)))

    started = time.perf_counter()
    asyncio.run(together())
    return time.perf_counter() - started


def _alone_first_s(engine: Engine, probe: Load) -> float:
    """Median seconds to the first text of a query, including rendering and tokenisation."""
    seconds = []
    for asked in probe:
        started = time.perf_counter()
        stream = engine.stream(_rows(engine, [asked])[0])
        next(chunk for chunk in stream if chunk.text)
        seconds.append(time.perf_counter() - started)
        stream.close()
    return statistics.median(seconds)


def _fitted(data: Database, engine: Engine) -> str:
    """Fits the two profiles; returns a key."""
    caller, key = new_tenant(data.sessions, "bench")
    runs = runner(data.sessions, engine, "persona-nano", tuple(persona_nano.query_bank()[:200]))
    persona = {"preferred": persona_nano.PERSONAS[0].preferred, "dispreferred": persona_nano.PERSONAS[0].dispreferred}
    for name, how in (("global", {"method": "distill", "contrast": 1.0}), ("conditional", {"method": "alignez"})):
        spec = {"persona": persona, "fit": {**how, "tune_queries": 0, "held_out_queries": 4}}
        fit(data.sessions, runs, caller, name, spec)
    return key
