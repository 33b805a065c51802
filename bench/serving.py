"""One batch, any number of personalities: our engines beside the ways the field serves profiles, in one run.

    make bench-serving        or        python -m bench.serving [--quick]        (in the environment of vLLM)

Measured, per system: tokens per second of greedy answers, 32 tokens in and 64 out, at 64 rows at once, with 0, 1, 8, 64
and 256 distinct `alignez` profiles (5 layers, rank 2, every position of the answer). The workload is the same 256
requests at every count; request i has profile i mod count, so that 256 profiles are 256 requests queued over 64 rows.
Our engines and plain vLLM run all of them at every count, vLLM multi-LoRA (slow here) at 256 and one batch of 64 below;
`generate` has no queue and is timed on one batch of 64, a different one each round; profile by profile, with as many
profiles as rows, 4 rows one after the other stand for the rest: rates are per token. Every system runs at every
count once a round, in an order that turns round, and ratios are medians over rounds of runs of the same round, because
a shared machine drifts. "Same tokens" compares 64 answers of a run with
those of `TransformersEngine` to the same edits.

Then, for our two engines: time to first token and time between tokens as a client of `Engine.stream` sees them, N
streams started at the same moment, with 64 distinct profiles that the engine has met before.

Not measured: loading of models and adapters, compiling, HTTP (`bench.service`), sampling, long or ragged prompts, the
prefix cache (off), the quality of answers (weights are random). PEFT, vLLM multi-LoRA and steering-vectors edit the
prompt's positions too: a LoRA knows no other way. On a CPU everything has one compute thread, but vLLM schedules in a
process of its own, while `TransformersEngine` and its clients share theirs.

The variant for a GPU, `--device cuda --model-shape mistral-7b --concurrency 64` (or 256), is not run where there is
none; `--only` leaves out what its memory does not hold.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, MistralConfig
from transformers.utils.logging import disable_progress_bar

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.spec.limits import Positions
from bench.engine import random_llama, save_random
from bench.lora import save_lora
from bench.serving_latency import latencies
from bench.serving_report import Results, report_of, table_of, write
from bench.serving_sweep import cells_of, same_tokens, sweep
from bench.serving_systems import SYSTEMS, VLLM, Bench, PlainVLLM, System, Transformers, load_model

OUT = Path("artifacts/bench")
PROMPT_TOKENS = 32
EDITED_LAYERS = 5
#: Strong, so that profiles change the tokens of a model with random weights.
STRENGTH = 4.0

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise vLLM sets a number of threads of its own
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",  # vLLM's processes have many
}


@dataclass(frozen=True)
class Load:
    """How much is run."""

    concurrency: int
    requests: int
    counts: tuple[int, ...]
    streams: tuple[int, ...]
    bursts: int
    new_tokens: int
    rounds: int

    @classmethod
    def full(cls, concurrency: int, rounds: int) -> Load:
        """The table's: counts up to four times as many profiles as rows."""
        return cls(concurrency, 4 * concurrency, (0, 1, 8, concurrency, 4 * concurrency), (1, 16, 64), 3, 64, rounds)


QUICK = Load(8, 32, (0, 1, 8, 32), (1, 8), 1, 8, 1)


def random_mistral_7b(directory: Path) -> None:
    """Mistral-7B's shape with random weights, bfloat16."""
    save_random(MistralConfig(sliding_window=None, tie_word_embeddings=False), directory, "bfloat16")


SHAPES = {"llama-8m": (random_llama, "float32"), "mistral-7b": (random_mistral_7b, "bfloat16")}


def random_plans(directory: Path, count: int, everywhere: bool) -> list[EditPlan]:
    """Distinct plans, the same for the answer alone and for every position."""
    config = AutoConfig.from_pretrained(directory)
    layers = range(config.num_hidden_layers - EDITED_LAYERS, config.num_hidden_layers)
    generator = torch.Generator().manual_seed(0)
    positions: Positions = "all" if everywhere else "answer"
    made = []
    for _ in range(count):
        harm, help_ = torch.randn(2, EDITED_LAYERS, config.hidden_size, generator=generator)
        made.append(EditPlan.alignez(layers, harm, help_, STRENGTH, positions=positions))
    return made


def make_bench(scratch: Path, options: argparse.Namespace, load: Load) -> Bench:
    """The model, its profiles and their adapters, all on disk and in memory."""
    directory = scratch / "model"
    save, dtype = SHAPES[options.model_shape]
    save(directory)
    everywhere = random_plans(directory, max(load.counts), everywhere=True)
    model = load_model(directory, options.device, dtype)
    adapters = [scratch / f"adapter-{i}" for i in range(len(everywhere))]
    for plan, path in zip(everywhere, adapters, strict=True):
        save_lora(plan, model, path)
    return Bench(
        directory,
        model,
        random_plans(directory, max(load.counts), everywhere=False),
        everywhere,
        adapters,
        load.concurrency,
        load.new_tokens,
        options.device,
        dtype,
        not options.quick,
        options.vllm_memory,
    )


def start(bench: Bench, only: Sequence[str], stack: ExitStack) -> tuple[list[System], dict[str, str]]:
    """The systems that can run here, and why the others cannot."""
    systems: list[System] = []
    left_out: dict[str, str] = {}
    for kind in SYSTEMS:
        if only and not any(word.lower() in kind.name.lower() for word in only):
            left_out[kind.name] = "not asked for"
            continue
        started = time.perf_counter()
        try:
            system = kind(bench)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            left_out[kind.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{kind.name} left out: {left_out[kind.name]}", flush=True)
            continue
        stack.callback(system.close)
        systems.append(system)
        print(f"{kind.name} started in {time.perf_counter() - started:.0f} s", flush=True)
    return systems, left_out


def run(bench: Bench, load: Load, only: Sequence[str], out: Path) -> None:
    """Measures, prints and writes."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = bench.model.config.vocab_size
    prompts = torch.randint(4, vocabulary, (load.requests, PROMPT_TOKENS), generator=generator).tolist()
    with ExitStack() as stack:
        systems, left_out = start(bench, only, stack)
        cells = cells_of(systems, load.counts)
        sweep(cells, prompts, load.rounds)
        engines = {system.name: system.engine for system in systems if isinstance(system, Transformers | VLLM)}
        engines.pop(PlainVLLM.name, None)
        requests = [
            GenerationRequest(prompt, load.new_tokens, 0.0, ignore_eos=True, edit=plan)
            for prompt, plan in zip(prompts[: load.concurrency], bench.plans, strict=False)
        ]
        latency = latencies(engines, requests, load.streams, load.bursts)
        truth = engines.get(Transformers.name)
        same = same_tokens(cells, bench, truth, prompts[: load.concurrency]) if truth else {}
    parameters = sum(weight.numel() for weight in bench.model.parameters())
    title = (
        f"{parameters / 1e6:,.1f} M parameters, {bench.dtype}, {bench.device}, {PROMPT_TOKENS} tokens in, "
        f"{load.new_tokens} out, {load.concurrency} rows at once; rounds: {load.rounds}, medians"
        + ("" if bench.compile else "; vLLM not compiled")
    )
    results = Results(cells)
    report = report_of(results, latency, same, title)
    write(report, table_of(report, results, latency, same), left_out, results, out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run, figures mean little")
    parser.add_argument("--rounds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--concurrency", type=int, default=64, help="rows at once")
    parser.add_argument("--only", nargs="*", default=(), metavar="WORD", help="of the systems' names")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model-shape", choices=SHAPES, default="llama-8m")
    parser.add_argument("--vllm-memory", type=float, default=0.25, help="share of a GPU for each vLLM")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    load = QUICK if options.quick else Load.full(options.concurrency, options.rounds)
    if options.device == "cpu":
        os.environ.update(ENVIRONMENT)
        torch.set_num_threads(1)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as scratch:
        run(make_bench(Path(scratch), options, load), load, options.only, options.out)


if __name__ == "__main__":
    main()
