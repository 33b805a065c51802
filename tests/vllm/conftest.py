"""vLLM engines over one tiny model; run by `make test-vllm` in vLLM's own environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from tests.core.engines.tiny_models import byte_tokenizer, tiny_model

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
    TOKENIZERS_PARALLELISM="false",
)

#: vLLM's CPU attention takes no narrower heads than 32.
WIDTH = 128
SHAPE = {"hidden_size": WIDTH, "num_attention_heads": 4, "head_dim": 32}
N_LAYERS = 3

Start = Callable[..., Any]


def save_tiny(kind: str, directory: Path) -> Path:
    """A tiny model of one architecture and the byte tokenizer, as a model directory."""
    # vLLM's Gemmas have no output embedding of their own.
    tied = {"tie_word_embeddings": True} if kind.startswith("gemma") else {}
    tiny_model(kind, **SHAPE, **tied).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def start(model_dir: Path) -> Start:
    """Starts an engine over the tiny Llama, eager unless told otherwise."""
    from alignez_core.engines.vllm.engine import VLLMEngine

    def begin(path: Path = model_dir, **settings: Any) -> VLLMEngine:
        return VLLMEngine.load(path, **({"compile": False, "max_running": 16} | settings))

    return begin


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Iterator[TransformersEngine]:
    """The engine that needs no vLLM, over the same weights."""
    torch.set_num_threads(1)
    with TransformersEngine.load(model_dir) as engine:
        yield engine


#: Rank of an engine that serves the strong form of `distill`: seven rows of the regression and the one for the mean.
STRONG_RANK = 8


def vllm_plan(seed: int) -> EditPlan:
    """A random plan that changes the tiny model's tokens: what each method makes, in turn.

    Ranks are 1 (`caa`, `transport`), 2 (`alignez`), 4 (`distill`, the default) and 8 (`distill` of every layer at its
    strongest, seeds 6, 13, …), which only an engine of `STRONG_RANK` holds.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(2, WIDTH, generator=generator) for _ in range(2))
    kind = seed % 7
    if kind == 0:
        return EditPlan.alignez([0, 2], first, second, 3.0)
    if kind in (1, 2):
        return EditPlan.transport([0, 2], first, torch.full((2,), 30.0), 2.0, steps=1 if kind == 1 else 3)
    if kind in (3, 4):
        return EditPlan.additive([0, 2], first * 8, 2.0, positions="all" if kind == 4 else "answer")
    layers, rank = ([0, 2], 4) if kind == 5 else (range(N_LAYERS), STRONG_RANK)
    shape = (len(layers), rank, WIDTH)
    read, write = (torch.randn(shape, generator=generator) for _ in range(2))
    return EditPlan.low_rank(layers, read / WIDTH, write * 4, torch.randn(shape[:2], generator=generator))


def requests_with_profiles(edited: int, plain: int, tokens: int = 10) -> list[GenerationRequest]:
    """Ragged greedy requests, `edited` of them with plans of their own, mixed with plain ones."""
    made: list[GenerationRequest] = []
    plans: list[EditPlan | None] = [vllm_plan(seed) for seed in range(edited)] + [None] * plain
    generator = torch.Generator().manual_seed(1)
    for i in torch.randperm(len(plans), generator=generator).tolist():
        length = int(torch.randint(3, 60, (1,), generator=generator))
        prompt = torch.randint(3, 259, (length,), generator=generator).tolist()
        made.append(GenerationRequest(prompt, tokens + i % 7, 0, ignore_eos=True, edit=plans[i]))
    return made


def tokens_of(engine: Engine, requests: list[GenerationRequest]) -> list[tuple[int, ...]]:
    """All requests at once."""
    return [completion.token_ids for completion in engine.generate(requests)]
