"""Throughput by number of profiles, and latency: our engines and other systems that serve profiles, in one run.

    python -m bench engine                          our engine on transformers beside `generate`
    make bench-serving                              every system, in the environment of vLLM
    python -m bench.engine.throughput [--quick] [--only WORD …] [--rounds 5] [--threads 1]

Greedy answers of a model with random weights on the CPU, 32 tokens in and 64 out: 256 requests over 64 rows, request i
with profile i mod their number (the paper's `alignez` in 5 layers, rank 2). A system without a queue runs one batch of
64, another one each round, and a slow one fewer requests: rates are per token. Every cell runs once a round, in
alternating order; ratios are medians over rounds of runs of the same round, because a shared machine drifts. "Same
tokens": the share of answers that `TransformersEngine` gives to the same edits. PEFT and vLLM multi-LoRA edit the
prompt's positions too. Not measured: loading, compiling, HTTP, sampling, the prefix cache, the quality of answers.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from alignez_core.engines.base import Engine, GenerationRequest
from bench.engine import systems
from bench.engine.systems import VLLM, Bench, HuggingFace, PlainVLLM, Row, System, Transformers
from bench.report import Report, options

PROMPT_TOKENS = 32


@dataclass
class Cell:
    """One system on one workload: tokens per second of each round, and the first round's answers by request."""

    system: System
    method: str
    profiles: int
    rows: Sequence[Row]
    rates: list[float] = field(default_factory=list)
    answers: dict[int, list[int]] = field(default_factory=dict)


class Cells(dict[tuple[str, str], Cell]):
    """The cells by system and workload."""

    def ratio(self, above: tuple[str, str], below: tuple[str, str]) -> float | None:
        """Median over rounds of the two rates' quotient; None where one was not measured."""
        if above not in self or below not in self:
            return None
        return statistics.median(a / b for a, b in zip(self[above].rates, self[below].rates, strict=True))

    def sweep(self, rounds: int) -> None:
        """Runs each cell once per round, in alternating order."""
        for cell in {name: cell for (name, _), cell in self.items()}.values():  # warm, and never timed
            cell.system.run(cell.rows[: cell.system.bench.concurrency], cell.method)
        for turn in range(rounds):
            for cell in list(self.values())[:: 1 if turn % 2 == 0 else -1]:
                many = cell.system.sample(cell.profiles, len(cell.rows))
                first = turn * many % len(cell.rows)
                started = time.perf_counter()
                answers = cell.system.run(cell.rows[first : first + many], cell.method)
                cell.rates.append(sum(map(len, answers)) / (time.perf_counter() - started))
                cell.answers = cell.answers or dict(enumerate(answers, first))


def run(
    quick: bool = False, only: Sequence[str] = ("generate", "TransformersEngine"), rounds: int = 5, threads: int = 1
) -> Report:
    """Measures the systems whose names have one of these words (all: none given) and that can run here."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    rows, new_tokens, rounds = (8, 8, 1) if quick else (64, 64, rounds)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        model = systems.random_llama(Path(scratch) / "model")
        depth, width = model.config.num_hidden_layers, model.config.hidden_size
        plans, everywhere = (systems.random_plans(depth, width, 4 * rows, positions) for positions in ("answer", "all"))
        adapters = [Path(scratch) / f"adapter-{i}" for i in range(4 * rows)]
        for plan, path in zip(everywhere, adapters, strict=True):
            systems.save_lora(plan, model, path)
        ours = {method: systems.low_rank_plans(depth, width, rows, method) for method in systems.RANKS}
        bench = Bench(Path(scratch) / "model", model, {"alignez": plans, **ours}, everywhere, adapters, rows, not quick)
        title = f"float32, {PROMPT_TOKENS} tokens in, {new_tokens} out, {rows} rows at once; medians of {rounds} rounds"
        report = Report("engine", title, ("tokens/s", "same tokens", "÷ no profiles"))
        running = _start(report, bench, only, stack)
        cells = _cells(running, bench, new_tokens)
        cells.sweep(rounds)
        engines = {s.name: s.engine for s in running if isinstance(s, Transformers) and s.edits != "none"}
        _report(report, cells, bench, engines.get(Transformers.name))
        some = [Row(row.prompt, i, new_tokens) for i, row in enumerate(next(iter(cells.values())).rows[:rows])]
        for name, engine in engines.items():
            _latency(report, name, engine, bench.requests(some, plans))
    return report


def _start(report: Report, bench: Bench, only: Sequence[str], stack: ExitStack) -> list[System]:
    running: list[System] = []
    for kind in systems.SYSTEMS:
        if only and not any(word.lower() in kind.name.lower() for word in only):
            continue
        try:
            system = kind(bench)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            report.details.append(f"left out: {kind.name} ({type(error).__name__}: {error})".splitlines()[0])
            continue
        stack.callback(system.close)
        running.append(system)
        print(f"{kind.name} is loaded", flush=True)
    return running


def _cells(running: Sequence[System], bench: Bench, new_tokens: int) -> Cells:
    rows = bench.concurrency
    generator = torch.Generator().manual_seed(1)
    shape = (4 * rows, PROMPT_TOKENS)
    prompts = torch.randint(4, bench.model.config.vocab_size, shape, generator=generator).tolist()
    ragged = torch.randint(new_tokens // 4, 2 * new_tokens + 1, (rows,), generator=generator).tolist()
    cells = Cells()

    def add(system: System, what: str, method: str, profiles: int, lengths: Sequence[int]) -> None:
        work = [
            Row(prompt, i % profiles if profiles else None, length)
            for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=False))
        ]
        cells[system.name, what] = Cell(system, method, profiles, work)

    for system in running:
        for count in (0, 1, 8, rows, 4 * rows):
            if system.edits != "none" if count else not system.unsteered:
                add(system, f"{count} profiles", "alignez", count, [new_tokens] * 4 * rows)
        if system.name in (HuggingFace.name, Transformers.name):
            for what, lengths in (("1 row", [new_tokens]), ("16 rows", [new_tokens] * 16), ("ragged", ragged)):
                add(system, what, "alignez", 0, lengths)
        if system.name == Transformers.name:
            for method in systems.RANKS:
                for count in (1, rows):
                    add(system, f"{count} profiles, {method}", method, count, [new_tokens] * 4 * rows)
    return cells


def _report(report: Report, cells: Cells, bench: Bench, engine: Engine | None) -> None:
    same = {name: cell for (name, _), cell in cells.items() if cell.profiles > 1 and cell.method == "alignez"}
    for (name, what), cell in cells.items():
        unsteered = (cell.system.unsteered or name, "0 profiles")
        relative = cells.ratio((name, what), unsteered) if cell.profiles else None
        share = _same_tokens(cell, bench, engine) if engine is not None and same.get(name) is cell else None
        least = {Transformers.name: 0.95, VLLM.name: 0.97}.get(name) if cell.profiles >= bench.concurrency else None
        report.add(f"{name}, {what}", statistics.median(cell.rates), share, relative, least=least)
    most = f"{4 * bench.concurrency} profiles"
    for above, below, least in (
        ((Transformers.name, most), (Transformers.name, "1 profiles"), 0.95),
        ((VLLM.name, most), (VLLM.name, "1 profiles"), 0.95),
        ((VLLM.name, "0 profiles"), (PlainVLLM.name, "0 profiles"), 0.97),
        *(((Transformers.name, what), (HuggingFace.name, what), 0.9) for what in ("1 row", "16 rows", "0 profiles")),
        ((Transformers.name, "ragged"), (HuggingFace.name, "ragged"), 1.3),
    ):
        if (ratio := cells.ratio(above, below)) is not None:
            report.add(f"{', '.join(above)} ÷ {', '.join(below)}", None, None, ratio, least=least)


def _same_tokens(cell: Cell, bench: Bench, engine: Engine) -> float:
    """The share of a cell's answers that `engine` gives to the same plans."""
    plans = bench.everywhere if cell.system.edits == "all" else bench.plans[cell.method]
    chosen = sorted(cell.answers)[: bench.concurrency]
    expected = engine.generate(bench.requests([cell.rows[i] for i in chosen], plans))
    return statistics.mean(cell.answers[i] == list(made.token_ids) for i, made in zip(chosen, expected, strict=True))


def _latency(report: Report, name: str, engine: Engine, requests: list[GenerationRequest]) -> None:
    """Bursts of N streams; fewer streams start more often, so that a percentile has answers."""

    async def burst(chosen: Sequence[GenerationRequest]) -> list[list[float]]:
        started = time.perf_counter()

        async def arrivals(request: GenerationRequest) -> list[float]:
            stream = engine.stream(request)
            return [time.perf_counter() - started async for chunk in stream for _ in chunk.token_ids]

        return await asyncio.gather(*map(arrivals, chosen))

    engine.generate(requests)  # plans are then where the engine keeps plans
    for count in (1, 16, 64):
        times = [t for i in range(max(1, 24 // count)) for t in asyncio.run(burst((requests * 8)[i : i + count]))]
        for what, seconds in (
            ("to first token", [t[0] for t in times]),
            ("between tokens", np.concatenate([np.diff(t) for t in times])),
        ):
            p50, p95 = (float(np.percentile(seconds, q)) * 1e3 for q in (50, 95))
            report.add(f"{name}, {count} streams, {what}: p50, p95", p50, p95, unit="ms")


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--only", nargs="*", default=(), metavar="WORD", help="of the systems' names")
    given = parser.parse_args()
    run(given.quick, given.only, given.rounds, given.threads).show(given.out)
