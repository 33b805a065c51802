"""float32 beside bfloat16 on this CPU: what `dtype="auto"` has to choose between.

    OMP_NUM_THREADS=1 python -m bench.dtypes [MODEL_DIRECTORY …] [--rows 64] [--tokens 16] [--repeats 3]

`TransformersEngine.generate`, the two formats by turns, the fastest of each. Without a directory: persona-nano.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.common.dtypes import bfloat16_speedup
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.models import persona_nano

FORMATS = ("float32", "bfloat16")


def measure(directory: Path, rows: int, new_tokens: int, repeats: int) -> None:
    """Prints tokens per second of decoding, and seconds of the prefill with each row's first token."""
    engines = {name: TransformersEngine.load(directory, dtype=name, max_slots=rows) for name in FORMATS}
    prefill, decode = dict.fromkeys(FORMATS, float("inf")), dict.fromkeys(FORMATS, 0.0)
    for _ in range(repeats):
        for name, engine in engines.items():
            first = _seconds(engine, rows, 1)
            prefill[name] = min(prefill[name], first)
            rest = _seconds(engine, rows, new_tokens) - first
            decode[name] = max(decode[name], rows * (new_tokens - 1) / rest)
    for name, engine in engines.items():
        print(
            f"{directory.name}, {rows} rows, {name}: decode {decode[name]:.0f} tokens/s, prefill {prefill[name]:.2f} s"
        )
        engine.close()


def _seconds(engine: TransformersEngine, rows: int, new_tokens: int) -> float:
    prompts = [f"How do I start hiking, number {row}?" for row in range(rows)]
    requests = [GenerationRequest(prompt, new_tokens, 0, ignore_eos=True) for prompt in prompts]
    began = time.perf_counter()
    engine.generate(requests)
    return time.perf_counter() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.dtypes", description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, default=[persona_nano.MODEL_DIR])
    for name, default in (("rows", 64), ("tokens", 16), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; bfloat16 products {bfloat16_speedup():.2f} times as fast as float32's")
    for model in options.models:
        measure(model, options.rows, options.tokens, options.repeats)
