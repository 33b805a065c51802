"""Time of a fit on one GPU, by stage: a 7B shape with random weights, on a bare machine.

    make research-gpu                     or: python -m research.gpu [--methods auto]

Needs torch and transformers, no installation and no model. With random weights the answers are noise of full length and
the verdicts say nothing: only seconds, tokens and memory are measured. The first fit warms up and is not reported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import fit_profile
from alignez_core.query_bank import default_queries
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName
from alignez_core.spec.persona import FitSpec
from bench.gpu import Figure, device_name, options, show
from bench.random_model import random_engine

METHODS: tuple[MethodName, ...] = ("auto", "distill", "alignez", "caa")
#: Requests in one batch, as a worker has them by default.
_ROWS = 64
#: Seconds that "auto" may take for a 7B model on an H100.
MOST = 15.0


def measure(engine: TransformersEngine, method: MethodName, device: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds by stage, tokens and peak memory of one fit, proof included."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    config = FitConfig(method=method, **sizes)
    profile = fit_profile(engine, FitSpec(bank=default_queries(), config=config))
    last = profile.diagnostics["last_attempt"]
    return {
        "seconds": time.perf_counter() - began,
        "stages": {stage: seconds for stage, seconds in last["seconds"].items() if seconds},
        "tokens": last["tokens_generated"],
        "gigabytes": torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else 0.0,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None: the process's arguments."""
    parser = options(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    args = parser.parse_args(arguments)
    name, tiny = device_name(args.device), args.shape == "tiny"
    sizes = {"answers": 10, "tune_queries": 2, "held_out_queries": 2, "answer_tokens": 4} if tiny else {}
    found, fits = [], {}
    with random_engine(args.shape, args.device, 8 if tiny else _ROWS, compile=args.compile) as engine:
        compiled = engine.compiled
        measure(engine, "distill", args.device, sizes)
        for method in args.methods:
            fits[method] = fit = measure(engine, method, args.device, sizes)
            print(f"{method}: {fit['seconds']:.1f} s, {fit['stages']}", flush=True)
            found.append(Figure(f"{method}: seconds", fit["seconds"], most=MOST if method == "auto" else None))
            found += [Figure(f"{method}: {stage}, seconds", seconds) for stage, seconds in fit["stages"].items()]
            found += [Figure(f"{method}: tokens", fit["tokens"]), Figure(f"{method}: memory, GB", fit["gigabytes"])]
    title = f"{name}, {args.shape} shape, torch {torch.__version__}, compiled: {compiled}"
    show(found, title, args.out / "research.json", {"fits": fits})


if __name__ == "__main__":
    main()
