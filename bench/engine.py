"""Throughput of `TransformersEngine` beside Hugging Face `generate`, and what steering costs, all in one run.

    python -m bench.engine [--threads 2] [--repeats 5] [--model DIRECTORY]

Greedy, float32, CPU. Every figure is tokens per second; every ratio is the median over repeats of two runs made one
right after the other, because a shared machine drifts. Without `--model`: a random Llama of 8M parameters.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.methods.distill import default_layers
from bench.report import Report

PROMPT_TOKENS, NEW_TOKENS = 32, 128
BATCHES = (1, 16, 64)
RAGGED = (16, 256)
PROFILES = 64
VOCABULARY = 4096
#: Rows a layer of the default edit (four layers) and of its strong form (all layers).
RANKS = {"distill": 4, "distill, strong form": 8}

Run = Callable[[], int]  # runs once, returns the tokens it made


def random_llama(directory: Path) -> None:
    """A Llama the size of the shipped model, with random weights, saved where both sides load it."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    save_random(config, directory)


def save_random(config: PretrainedConfig, directory: Path, dtype: str = "float32") -> None:
    """A model of this configuration with random weights, and a tokenizer of one word per id, as a model directory."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    vocab = {f"<{i}>": i for i in range(config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)  # type: ignore[no-untyped-call]


def greedy(model: Any, prompts: torch.Tensor, new_tokens: int, **arguments: Any) -> torch.Tensor:
    """(B, new_tokens): what `generate` adds to prompts (B, T) of one length, past any end-of-sequence token."""
    with torch.inference_mode():
        tokens: torch.Tensor = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            **arguments,
        )
    return tokens[:, prompts.shape[1] :]


def hugging_face(model: Any, prompts: torch.Tensor, new_tokens: int, useful: int) -> Run:
    """`generate` on one batch; `useful` tokens are those that a request asked for, not padding to the longest."""

    def run() -> int:
        greedy(model, prompts, new_tokens)
        return useful

    return run


def ours(
    engine: TransformersEngine, prompts: torch.Tensor, lengths: Sequence[int], plans: Sequence[EditPlan | None] = ()
) -> Run:
    """The same requests through the engine, each with its own length and plan."""
    edits = list(plans) or [None] * len(lengths)
    requests = [
        GenerationRequest(prompt, length, 0.0, ignore_eos=True, edit=edit)
        for prompt, length, edit in zip(prompts.tolist(), lengths, edits, strict=True)
    ]

    def run() -> int:
        return sum(len(completion.token_ids) for completion in engine.generate(requests))

    return run


def compare(numerator: Run, denominator: Run, repeats: int) -> dict[str, float]:
    """Median tokens/s of both, and the median of the ratios of neighbouring runs."""
    numerator(), denominator()
    above: list[float] = []
    below: list[float] = []
    for i in range(repeats):
        # Alternating which goes first, so that neither always runs on the warmer machine.
        for run, rates in ((numerator, above), (denominator, below))[:: 1 if i % 2 else -1]:
            started = time.perf_counter()
            made = run()
            rates.append(made / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "tokens_per_s": round(statistics.median(above)),
        "baseline_tokens_per_s": round(statistics.median(below)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def profiles(engine: TransformersEngine, method: str, count: int) -> list[EditPlan]:
    """64 plans, `count` of them distinct. Small, so that random text does not change its length or kind."""
    layers, width = engine.info.n_layers, engine.info.hidden_size
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        if method in RANKS:
            chosen = default_layers(layers) if method == "distill" else tuple(range(layers))
            shape = (len(chosen), RANKS[method], width)
            u, v = (torch.randn(shape, generator=generator) / width for _ in range(2))
            made.append(EditPlan.low_rank(chosen, u, v, torch.zeros(shape[:2])))
        else:
            chosen = tuple(range(layers - min(5, layers), layers))
            rows = torch.randn(2, len(chosen), width, generator=generator)
            made.append(EditPlan.alignez(chosen, rows[0], rows[1], strength=0.5))
    return [made[i % count] for i in range(PROFILES)]


def measure(directory: Path, repeats: int) -> Report:
    """Every comparison, printed as it is made."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.requires_grad_(False)
    parameters = sum(p.numel() for p in model.parameters())
    report = Report(
        "engine",
        f"Llama of {parameters / 1e6:.1f} M parameters, float32, {torch.get_num_threads()} threads, "
        f"{PROMPT_TOKENS} tokens in, {NEW_TOKENS} out; ratio = median of {repeats} neighbouring pairs",
    )
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(4, model.config.vocab_size, (PROFILES, PROMPT_TOKENS), generator=generator)

    def add(name: str, numbers: dict[str, float], must: str) -> None:
        print(f"{name:44} {numbers}", flush=True)
        report.add(f"{name}: ratio", numbers["ratio"], "", must)
        report.add(f"{name}: numerator", numbers["tokens_per_s"], "tokens/s")
        report.add(f"{name}: denominator", numbers["baseline_tokens_per_s"], "tokens/s")

    with TransformersEngine.load(directory, prompt_format="plain") as engine:
        for batch in BATCHES:
            some, lengths = prompts[:batch], [NEW_TOKENS] * batch
            theirs = hugging_face(model, some, NEW_TOKENS, NEW_TOKENS * batch)
            add(f"engine ÷ generate, batch {batch}", compare(ours(engine, some, lengths), theirs, repeats), "≥ 0.90")

        ragged = torch.randint(RAGGED[0], RAGGED[1] + 1, (PROFILES,), generator=generator).tolist()
        theirs = hugging_face(model, prompts, max(ragged), sum(ragged))
        add("engine ÷ generate, 64 ragged", compare(ours(engine, prompts, ragged), theirs, repeats), "> 1")

        lengths = [NEW_TOKENS] * PROFILES
        plain = ours(engine, prompts, lengths)
        for method in (*RANKS, "alignez"):
            one, many = (ours(engine, prompts, lengths, profiles(engine, method, n)) for n in (1, PROFILES))
            add(f"steered ÷ unsteered, {method}, 1 profile", compare(one, plain, repeats), "")
            least = "≥ 0.97" if method == "distill" else "≥ 0.95"
            add(f"steered ÷ unsteered, {method}, {PROFILES} profiles", compare(many, plain, repeats), least)
            add(f"{PROFILES} profiles ÷ 1, {method}", compare(many, one, repeats), "≈ 1 (flat)")
        mixed = [plan if i % 2 else None for i, plan in enumerate(profiles(engine, "alignez", PROFILES))]
        add("steered ÷ unsteered, every second row", compare(ours(engine, prompts, lengths, mixed), plain, repeats), "")
    return report


def run(model: Path | None = None, repeats: int = 5) -> Report:
    """Measures on a model directory, or on a random Llama of the field's usual test size."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = model or Path(scratch)
        if model is None:
            random_llama(directory)
        return measure(directory, repeats)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run(options.model, options.repeats).print()


if __name__ == "__main__":
    main()
