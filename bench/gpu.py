"""Decoding on one GPU, with and without profiles: a 7B shape with random weights, on a bare machine.

    make bench-gpu                        or: python -m bench.gpu [--compile] [--repeats 5]

Needs torch and transformers, no installation and no model. Batches of 64 and 256 greedy requests, 32 tokens in and 64
out, without profiles, with one and with as many profiles as rows (four layers, rank 4, the size that `distill` makes),
and with 64 in its strong form (all layers, rank 8). Cells run once per repeat, in alternating order, for one token and
for all of them; the difference is the time of the steps. A ratio is the median over repeats. The floor of a step is the
time to read its weights and its keys and values once, at the bandwidth that a large copy reaches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from bench.engine.systems import RANKS, low_rank_plans
from bench.random_model import SHAPES, cache_bytes, random_engine, weight_bytes

_PROMPT = 32
#: Ratio → numerator, denominator, least value (the design's).
RATIOS = {
    "64 profiles ÷ none": ("64 profiles", "none", 0.97),
    "1 profile ÷ none": ("1 profile", "none", None),
    "strong form ÷ none": ("64 profiles, strong", "none, beside strong", 0.95),
    "256 profiles ÷ 1": ("256 profiles", "1 profile, 256 rows", 0.97),
    "256 profiles ÷ none": ("256 profiles", "none, 256 rows", None),
}


@dataclass
class Cell:
    """A batch of requests, with the measured seconds of each repeat.

    Args:
        plans: profiles; request i has profile i mod their number. Empty: none.
        first: seconds until every request has its first token: prefill, and the upload of profiles.
        rest: seconds of the remaining steps.
    """

    rows: int
    plans: Sequence[EditPlan] = ()
    first: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """A measured value with its bounds.

    Args:
        spread: smallest and largest of the repeats.
        least, most: bounds; None where there are none.
    """

    name: str
    value: float
    spread: tuple[float, float] | None = None
    least: float | None = None
    most: float | None = None

    @property
    def must(self) -> str:
        """The bound in words, and whether it is missed."""
        held = (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)
        bounds = (f"{sign} {bound:g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None)
        return " and ".join(bounds) + ("" if held else ": MISSED")


def make_sweeps(n_layers: int, width: int, rows: tuple[int, int]) -> list[dict[str, Cell]]:
    """The workloads by name, in two sweeps: the engine's tables keep the size of the largest plan for a while.

    Args:
        rows: of the small and of the large batch.
    """
    few, many = rows
    plans, strong = (low_rank_plans(n_layers, width, many, method) for method in RANKS)
    default = {
        "none": Cell(few),
        "1 profile": Cell(few, plans[:1]),
        "64 profiles": Cell(few, plans[:few]),
        "none, 256 rows": Cell(many),
        "1 profile, 256 rows": Cell(many, plans[:1]),
        "256 profiles": Cell(many, plans),
    }
    return [default, {"none, beside strong": Cell(few), "64 profiles, strong": Cell(few, strong[:few])}]


def measure(engine: TransformersEngine, cell: Cell, tokens: int) -> None:
    """Runs a cell once for one token and once for all, which leaves the steps between as the difference."""
    first = run_cell(engine, cell, 1)
    cell.first.append(first)
    cell.rest.append(run_cell(engine, cell, tokens) - first)


def run_cell(engine: TransformersEngine, cell: Cell, tokens: int) -> float:
    """Seconds in which an engine completes a cell's requests."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(engine.info.vocab_size, (cell.rows, _PROMPT), generator=generator).tolist()
    requests = [
        GenerationRequest(
            prompt, tokens, 0.0, ignore_eos=True, edit=cell.plans[i % len(cell.plans)] if cell.plans else None
        )
        for i, prompt in enumerate(prompts)
    ]
    began = time.perf_counter()
    answers = engine.generate(requests)
    seconds = time.perf_counter() - began
    assert all(len(answer.token_ids) == tokens for answer in answers)
    return seconds


def bandwidth(device: str, megabytes: int) -> float:
    """Bytes per second that the device's memory reads and writes in a copy, the best of five."""
    source = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(5):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def figures(cells: dict[str, Cell], args: argparse.Namespace, bytes_per_second: float) -> list[Figure]:
    """Ratios, rates and distances from the floor."""
    found = []
    for name, (above, below, least) in RATIOS.items():
        quotients = [b / a for a, b in zip(cells[above].rest, cells[below].rest, strict=True)]
        found.append(Figure(name, statistics.median(quotients), (min(quotients), max(quotients)), least))
    for name, cell in cells.items():
        step = statistics.median(cell.rest) / (args.tokens - 1)
        cached = cache_bytes(args.shape, args.device, cell.rows, _PROMPT + args.tokens / 2)
        floor = (weight_bytes(args.shape, args.device) + cached) / bytes_per_second
        found.append(Figure(f"{name}: tokens/s", cell.rows / step))
        found.append(Figure(f"{name}: step ÷ floor", step / floor))
        found.append(Figure(f"{name}: seconds to the first token of all", statistics.median(cell.first)))
    return [*found, Figure("memory, GB/s", bytes_per_second / 1e9)]


def show(found: Sequence[Figure], title: str, path: Path, more: dict[str, object]) -> None:
    """Prints the figures as Markdown and writes them as JSON."""
    print(f"\n{title}\n\n| figure | value | range | must |\n| --- | --- | --- | --- |")
    for each in found:
        spread = "" if each.spread is None else f"{each.spread[0]:.3f} to {each.spread[1]:.3f}"
        print(f"| {each.name} | {each.value:,.3f} | {spread} | {each.must} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "figures": [asdict(each) for each in found], **more}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}", flush=True)


def options(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of the measurements on a GPU."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b", help="tiny: a smoke run (default: %(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="the decode step through torch.compile")
    parser.add_argument("--out", type=Path, default=Path("artifacts/gpu"), help="folder of results (%(default)s)")
    return parser


def device_name(device: str) -> str:
    """The device in words. Raises: SystemExit: there is no such device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available; --device cpu --shape tiny is a smoke run")
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None: the process's arguments."""
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens, 2 or more (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each workload (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.tokens < 2 or args.repeats < 1:
        parser.error("--tokens must be 2 or more, --repeats 1 or more")
    name, tiny = device_name(args.device), args.shape == "tiny"
    rows = (4, 8) if tiny else (64, 256)
    bytes_per_second = bandwidth(args.device, 16 if tiny else 2048)
    with random_engine(args.shape, args.device, rows[1], compile=args.compile) as engine:
        sweeps = make_sweeps(engine.info.n_layers, engine.info.hidden_size, rows)
        for cells in sweeps:
            for label, cell in cells.items():
                print(f"warming up: {label}, {run_cell(engine, cell, args.tokens):.1f} s", flush=True)
            for turn in range(args.repeats):
                for cell in list(cells.values())[:: 1 if turn % 2 == 0 else -1]:
                    measure(engine, cell, args.tokens)
                print(f"repeat {turn + 1} of {args.repeats}", flush=True)
        title = f"{name}, {args.shape} shape, torch {torch.__version__}, compiled: {engine.compiled}"
    every = {label: cell for cells in sweeps for label, cell in cells.items()}
    seconds = {label: {"first": cell.first, "rest": cell.rest} for label, cell in every.items()}
    show(figures(every, args, bytes_per_second), title, args.out / "bench.json", {"seconds": seconds})


if __name__ == "__main__":
    main()
