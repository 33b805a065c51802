"""A decode step of `TransformersEngine` by rows, number format and compilation; and its prefill.

    python -m bench.engine.step [--quick] [--dtype float32 bfloat16] [--threads 1] [--repeats 5] [MODEL_DIR …]

A step is a whole batch's next tokens: the time of 33 tokens less that of one, ÷ 32. The variants run in turn and the
fastest run counts, which a busy machine disturbs least. Without a directory: persona-nano.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.common.dtypes import bfloat16_speedup
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.models import persona_nano
from bench.engine.systems import random_plans
from bench.report import Report, options

STEPS = 32


def run(directories: Sequence[Path], dtypes: Sequence[str], rows: Sequence[int], repeats: int) -> Report:
    """Measures with and without distinct profiles."""
    columns = ("prefill", "step, uncompiled", "step, compiled", "uncompiled ÷ compiled")
    report = Report("step", f"{torch.get_num_threads()} threads", columns)
    report.add("bfloat16 ÷ float32, matrix products", bfloat16_speedup())
    for directory, dtype in itertools.product(directories, dtypes):
        with ExitStack() as stack:
            engines = [
                stack.enter_context(TransformersEngine.load(directory, dtype=dtype, max_slots=max(rows), compile=on))
                for on in (False, True)
            ]
            for count, steered in itertools.product(rows, (False, True)):
                prefill, step = [float("inf")] * 2, [float("inf")] * 2
                for i, engine in list(enumerate(engines)) * repeats:
                    first = _ms(engine, count, 1, steered)
                    prefill[i] = min(prefill[i], first)
                    step[i] = min(step[i], (_ms(engine, count, STEPS + 1, steered) - first) / STEPS)
                kind = "distinct profiles" if steered else "no profiles"
                report.add(f"{directory.name}, {dtype}, {count} rows, {kind}", min(prefill), *step, step[0] / step[1],
                           unit="ms")  # fmt: skip
    return report


def _ms(engine: TransformersEngine, rows: int, new_tokens: int, steered: bool) -> float:
    plans = random_plans(engine.info.n_layers, engine.info.hidden_size, rows) if steered else [None] * rows
    prompts = (f"How do I start hiking, number {row}?" for row in range(rows))
    requests = [
        GenerationRequest(prompt, new_tokens, 0.0, ignore_eos=True, edit=plan)
        for prompt, plan in zip(prompts, plans, strict=True)
    ]
    began = time.perf_counter()
    engine.generate(requests)
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("models", nargs="*", type=Path, default=[persona_nano.MODEL_DIR])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, repeats = ((4,), 1) if given.quick else ((1, 16, 64), given.repeats)
    run(given.models, given.dtype, rows, repeats).show(given.out)
