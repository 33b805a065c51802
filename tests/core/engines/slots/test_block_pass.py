"""Passes that halt between blocks: the states are the model's, whatever runs beside them, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest, ScoreRequest, pass_bytes
from alignez_core.engines.slots import engine as transformers_engine
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.errors import AlignezError, EngineClosed, OutOfMemory
from alignez_core.hooks import edited_forward
from tests.core.engines.tiny_models import HIDDEN, N_LAYERS, plan, prompts, tiny_engine, tiny_model

TEXTS = prompts(7, seed=3, longest=30)
TAILS = prompts(7, seed=4, longest=20)
REQUESTS = [ScoreRequest(text, tail) for text, tail in zip(TEXTS, TAILS, strict=True)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "alignez-block-pass"]


@torch.no_grad()
def expected(kind: str = "llama") -> tuple[list[Tensor], list[Tensor], Tensor]:
    """x and r of every block and the logits, one text at a time, by plain hooks."""
    model = tiny_model(kind)
    xs: list[list[Tensor]] = [[] for _ in range(N_LAYERS)]
    rs: list[list[Tensor]] = [[] for _ in range(N_LAYERS)]
    logits = []
    for text, tail in zip(TEXTS, TAILS, strict=True):
        at = slice(len(text) - 1, len(text) + len(tail) - 1)
        handles = []
        for layer, block in enumerate(model.model.layers):
            handles.append(
                block.mlp.register_forward_hook(lambda m, a, y, layer=layer, at=at: xs[layer].append(y[0, at]))
            )
            handles.append(
                block.register_forward_hook(
                    lambda m, a, y, layer=layer, at=at: rs[layer].append((y[0] if isinstance(y, tuple) else y)[0, at])
                )
            )
        logits.append(model(torch.tensor([[*text, *tail]])).logits[0, at])
        for handle in handles:
            handle.remove()
    return [torch.cat(x) for x in xs], [torch.cat(r) for r in rs], torch.cat(logits)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_states_are_those_of_plain_hooks_in_batches_of_any_size(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(transformers_engine, "_BATCH_TOKENS", budget)
    xs, rs, logits = expected()
    walk = engine.walk(REQUESTS)
    assert walk.lengths == tuple(len(tail) for tail in TAILS)
    for layer in range(N_LAYERS):
        at = walk.after(layer)
        assert at.x.dtype == at.r.dtype == torch.float32
        close(at.x, xs[layer])
        close(at.r, rs[layer])
    close(walk.logits(), logits)


def test_blocks_may_be_left_out(engine: TransformersEngine) -> None:
    _, rs, logits = expected()
    walk = engine.walk(REQUESTS)
    close(walk.after(N_LAYERS - 1).r, rs[-1])
    close(walk.logits(), logits)
    close(engine.walk(REQUESTS).logits(), logits)


def test_two_passes_in_turn_are_two_passes_alone(engine: TransformersEngine) -> None:
    _, rs, _ = expected()
    one, other = engine.walk(REQUESTS), engine.walk(REQUESTS[::-1])
    for layer in range(N_LAYERS):
        a, b = one.after(layer), other.after(layer)
        close(a.r, rs[layer])
        backwards = torch.cat(list(torch.split(b.r, list(other.lengths)))[::-1])
        close(backwards, rs[layer])
    one.close()
    other.close()


def test_what_is_added_reaches_the_later_blocks(engine: TransformersEngine) -> None:
    """The same as an edit of the block's MLP output by a constant."""
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0))
    walk = engine.walk(REQUESTS)
    walk.after(0)
    at = walk.after(1)
    walk.add(vector.expand_as(at.r))
    later = walk.after(2).r
    logits = walk.logits()
    edit = EditPlan.additive([1], vector[None])
    edited = engine.walk([ScoreRequest(r.prompt, r.continuation, edit) for r in REQUESTS])
    close(edited.after(2).r, later)
    close(edited.logits(), logits)


@pytest.mark.parametrize("kind", ["alignez", "transport", "additive"])
def test_edits_are_those_of_edited_forward(engine: TransformersEngine, kind: str) -> None:
    edits = [plan(kind, i) if i % 3 else None for i in range(len(REQUESTS))]
    walk = engine.walk([ScoreRequest(r.prompt, r.continuation, e) for r, e in zip(REQUESTS, edits, strict=True)])
    found = torch.split(walk.logits(), list(walk.lengths))
    model = tiny_model("llama")
    for text, tail, edit, rows in zip(TEXTS, TAILS, edits, found, strict=True):
        with torch.no_grad(), edited_forward(model, [edit]):
            cache = model(torch.tensor([text]), use_cache=True)
            rest = model(torch.tensor([tail]), past_key_values=cache.past_key_values).logits[0]
        close(rows, torch.cat([cache.logits[0, -1:], rest[:-1]]))


def test_streams_go_on_while_a_pass_halts(engine: TransformersEngine) -> None:
    request = GenerationRequest(TEXTS[0], max_tokens=24, temperature=0.0, ignore_eos=True)
    alone = engine.generate([request])[0]
    walk = engine.walk(REQUESTS)
    walk.after(0)
    chunks = iter(engine.stream(request))
    first = next(chunks)
    _, rs, _ = expected()
    close(walk.after(1).r, rs[1])
    rest = "".join(chunk.text for chunk in chunks)
    assert first.text + rest == alone.text
    assert engine.generate([request])[0] == alone
    close(walk.after(2).r, rs[2])
    walk.close()


def test_closing_in_the_middle_ends_the_threads_and_the_pass(engine: TransformersEngine) -> None:
    walk = engine.walk(REQUESTS)
    walk.after(1)
    assert threads()
    walk.close()
    assert threads() == []
    walk.close()
    with pytest.raises(AlignezError, match="closed"):
        walk.after(2)
    unused = engine.walk(REQUESTS)
    unused.close()


def test_what_one_batch_raises_ends_all_of_them(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_engine, "_BATCH_TOKENS", 60)
    walk = engine.walk(REQUESTS)
    walk.after(0)
    calls = 0
    visit = SlotRunner.visit

    def failing(self: SlotRunner, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OutOfMemory("the device is full")
        return visit(self, *args)

    monkeypatch.setattr(SlotRunner, "visit", failing)
    other = engine.walk(REQUESTS)
    with pytest.raises(OutOfMemory, match="full"):
        other.after(0)
    close(walk.after(1).r, expected()[1][1])  # the pass beside it lives
    walk.close()
    assert engine.generate([GenerationRequest(TEXTS[0], max_tokens=2)])


def test_a_closed_engine_ends_its_passes() -> None:
    engine = tiny_engine()
    walk = engine.walk(REQUESTS)
    walk.after(0)
    engine.close()
    with pytest.raises(EngineClosed):
        walk.after(1)


def test_the_memory_bound_counts_two_float32_states_beside_the_residual_stream() -> None:
    # 7B in bfloat16: 32 answers of 48 tokens after prompts of 60 are 3456 positions of width 4096.
    assert pass_bytes(3456, 4096, 2) == 3456 * 4096 * (2 + 8)
