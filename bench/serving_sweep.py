"""The measurement of throughput in `bench.serving`: every system at every number of profiles, round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest
from bench.serving_systems import Bench, Row, System


@dataclass
class Cell:
    """One system at one number of profiles: tokens per second of each round."""

    system: System
    profiles: int
    rates: list[float] = field(default_factory=list)
    answers: dict[int, list[int]] = field(default_factory=dict)  #: of the first round, by request


def cells_of(systems: Sequence[System], counts: Sequence[int]) -> list[Cell]:
    """What is measured: a system that shares its unsteered run with another has none of its own."""
    cells = []
    for system in systems:
        for count in counts:
            if (count == 0 and not system.unsteered) or (count and system.edits != "none"):
                cells.append(Cell(system, count))
    return cells


def rows_of(prompts: Sequence[list[int]], cell: Cell, turn: int) -> tuple[int, list[Row]]:
    """The number of the first request, and the rows of one timed run."""
    many = cell.system.sample(cell.profiles, len(prompts))
    first = turn * many % len(prompts)
    chosen = range(first, min(first + many, len(prompts)))
    return first, [(prompts[i], i % cell.profiles if cell.profiles else None) for i in chosen]


def sweep(cells: Sequence[Cell], prompts: Sequence[list[int]], rounds: int) -> None:
    """Fills the cells: one run each a round, the order turned round from one to the next."""
    for cell in _most(cells).values():  # warm, and never timed
        _, rows = rows_of(prompts, cell, 0)
        cell.system.run(rows[: cell.system.bench.concurrency])
    for turn in range(rounds):
        for cell in cells if turn % 2 == 0 else cells[::-1]:
            first, rows = rows_of(prompts, cell, turn)
            started = time.perf_counter()
            answers = cell.system.run(rows)
            cell.rates.append(sum(map(len, answers)) / (time.perf_counter() - started))
            if turn == 0:
                cell.answers = dict(enumerate(answers, first))
        print(f"round {turn + 1} of {rounds} done", flush=True)


def same_tokens(cells: Sequence[Cell], bench: Bench, engine: Engine, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Shares of answers that are equal to the token.

    Args:
        prompts: those to compare, the first of the workload.
    Returns: per system, of its run with most profiles beside what `engine` answers to the same plans in a run of its
        own; under "bare model" the share of answers that the plans leave as the bare model gives them.
    """
    known = {
        "none": _answers(engine, bench, prompts, None),
        "answer": _answers(engine, bench, prompts, bench.plans),
        "all": _answers(engine, bench, prompts, bench.everywhere),
    }
    shares = {"bare model": statistics.mean(a == b for a, b in zip(known["none"], known["answer"], strict=True))}
    for name, cell in _most(cells).items():
        expected = known[cell.system.edits]
        shares[name] = statistics.mean(cell.answers[i] == expected[i] for i in cell.answers if i < len(expected))
    return shares


def _most(cells: Sequence[Cell]) -> dict[str, Cell]:
    """Every system's cell with most profiles, which is its last."""
    return {cell.system.name: cell for cell in cells}


def _answers(
    engine: Engine, bench: Bench, prompts: Sequence[list[int]], plans: Sequence[EditPlan] | None
) -> list[list[int]]:
    requests = [
        GenerationRequest(prompt, bench.new_tokens, 0.0, ignore_eos=True, edit=plans[i % len(plans)] if plans else None)
        for i, prompt in enumerate(prompts)
    ]
    return [list(completion.token_ids) for completion in engine.generate(requests)]
