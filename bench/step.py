"""One decode step of `TransformersEngine`, compiled beside uncompiled, where its time goes, and what it must cost.

    python -m bench.step [--threads 1] [--pairs 20] [--model DIRECTORY]

Ragged rows with plans of their own or without any, float32, CPU. Ratios are medians of neighbouring timings; times are
the fastest seen, which a busy machine disturbs least. Without `--model`: persona-nano, then a random Llama of 8M.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from alignez_core.editing import EditPlan
from alignez_core.engines.common.sampling import BatchSampler, SamplingParams
from alignez_core.engines.slots.mlp_modules import find_blocks, find_mlp_modules, mlp_path
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.models import persona_nano
from bench.engine import random_llama

ROWS = (1, 16, 64)
PROMPT_TOKENS = (8, 56)


def fastest(run: Callable[[], object], times: int) -> float:
    """Milliseconds of the fastest of several runs."""
    seen = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seen.append(time.perf_counter() - started)
    return 1e3 * min(seen)


def plans(n_layers: int, width: int, count: int) -> list[EditPlan | None]:
    """So many different plans of the paper's method, in the last five layers."""
    generator = torch.Generator().manual_seed(0)
    layers = range(n_layers - min(5, n_layers), n_layers)
    pairs = torch.randn(count, 2, len(layers), width, generator=generator)
    return [EditPlan.alignez(layers, harm, help_, strength=0.5) for harm, help_ in pairs]


def floor(model: nn.Module, rows: int) -> str:
    """What no step gets under: the model's matrix products alone, and the bytes that it has to read."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = [torch.randn(rows, linear.in_features) for linear in linears]

    def products() -> list[Tensor]:
        return [linear(x) for linear, x in zip(linears, inputs, strict=True)]

    weights = sum(linear.weight.numel() for linear in linears)
    with torch.inference_mode():
        took = fastest(products, 30)
    return f"products alone {took:.2f} ms: {2e-9 * weights * rows:.3f} GFLOP, {4e-6 * weights:.0f} MB of weights"


def measure(name: str, directory: Path, pairs: int) -> None:
    """Prints every comparison of one model."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.requires_grad_(False).train(False)
    config = model.config
    path = mlp_path(config.model_type)
    mlps, blocks = (find(model, config.num_hidden_layers, path) for find in (find_mlp_modules, find_blocks))
    runner = SlotRunner(model, mlps, max(ROWS), 512, blocks)
    started = time.perf_counter()
    if not runner.compile():
        raise SystemExit("the step could not be compiled")
    print(f"{name}: {runner.programs} programs in {time.perf_counter() - started:.0f} s", flush=True)
    compiled = runner._compiled
    for rows in ROWS:
        print(f"  {rows} rows: {floor(model, rows)}", flush=True)
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(*PROMPT_TOKENS, (rows,), generator=generator).tolist()
        prompts = [torch.randint(4, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
        for kind, edits in (
            ("plain", [None] * rows),
            ("steered", plans(config.num_hidden_layers, config.hidden_size, rows)),
        ):
            runner.prefill(prompts, edits)
            kept = runner._lengths.copy()
            times: dict[bool, list[float]] = {True: [], False: []}
            for i in range(pairs):
                for on in (True, False) if i % 2 else (False, True):
                    runner._compiled = compiled if on else None
                    times[on].append(fastest(partial(runner.decode, [5] * rows), 5))
                    runner._lengths[:] = kept
            ratios = sorted(slow / fast for slow, fast in zip(times[False], times[True], strict=True))
            logits = runner.decode([5] * rows)
            sampler = BatchSampler([SamplingParams(0.0)] * rows, [0] * rows, torch.device("cpu"))
            chosen = fastest(partial(sampler.sample, logits), 20)
            runner.reset()
            print(
                f"  {rows} rows, {kind}: uncompiled {min(times[False]):.2f} ms, compiled {min(times[True]):.2f} ms, "
                f"throughput x {statistics.median(ratios):.2f} ({ratios[len(ratios) // 5]:.2f} to "
                f"{ratios[-len(ratios) // 5]:.2f}); greedy choice {chosen:.3f} ms",
                flush=True,
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.model is not None:
        measure(options.model.name, options.model, options.pairs)
        return
    measure("persona-nano", persona_nano.MODEL_DIR, options.pairs)
    with tempfile.TemporaryDirectory() as scratch:
        random_llama(Path(scratch))
        measure("Llama 8M", Path(scratch), options.pairs)


if __name__ == "__main__":
    main()
