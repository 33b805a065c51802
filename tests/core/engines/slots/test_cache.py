"""The cache's memory grows in buckets, and what a burst took comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots import runner as runner_module
from alignez_core.engines.slots.cache import SlotCache
from tests.core.engines.contract import wait_until
from tests.core.engines.slots.watched import watched_engine
from tests.core.engines.test_isolation import requests_with_profiles, tokens
from tests.core.engines.tiny_models import plan, prompts, slot_runner, tiny_model


def places(cache: SlotCache) -> int:
    """Tokens that the first layer's keys have room for."""
    return cache.keys[0].shape[0] * cache.keys[0].shape[2] if cache.keys else 0


def filled(slots: int, length: int) -> SlotCache:
    cache = SlotCache(64, 1024)
    cache.reserve(slots, length)
    like = torch.zeros(1, 2, 1, 4)
    for tensor in cache.layer(0, like, like):
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))
    return cache


def test_memory_is_four_times_rows_times_longest_at_most() -> None:
    for slots, length in ((1, 65), (33, 513), (64, 1000), (3, 10)):
        assert places(filled(slots, length)) <= 4 * slots * max(length, 64)


def test_shrinking_keeps_what_is_in_the_slots_and_does_nothing_for_little() -> None:
    cache = filled(64, 1024)
    before, version = cache.keys[0], cache.version
    assert not cache.shrink(33, 500)
    assert cache.keys[0] is before
    assert cache.version == version
    assert cache.shrink(5, 100)
    assert cache.keys[0].shape == (8, 2, 129, 4)
    assert torch.equal(cache.keys[0][:5, :, :100], before[:5, :, :100])
    assert torch.equal(cache.values[0][:5, :, :100], before[:5, :, :100])
    assert cache.version != version


def test_a_long_row_s_memory_comes_back_while_short_ones_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_SHRINK_STEPS", 8)
    model = tiny_model("llama")
    edits = [plan("alignez", 1), None, plan("transport", 2, steps=90), plan("alignez", 3)]
    short = prompts(3, seed=1, longest=10)

    def logits(burst: bool) -> tuple[list[torch.Tensor], list[int]]:
        runner = slot_runner(model, "llama", 32)
        runner.prefill(short, edits[:3])
        if burst:
            runner.prefill([[5] * 100] * 29, edits[3:] * 29)
            runner.decode([7] * 32)
            runner.remove(range(3, 32))
        else:
            runner.decode([7] * 3)
        out, sizes = [], []
        for step in range(40):
            out.append(runner.decode([3 + step, 4 + step, 5 + step]))
            sizes.append(places(runner._cache))
        runner.close()
        return out, sizes

    expected, _ = logits(burst=False)
    got, sizes = logits(burst=True)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert sizes[0] == 32 * 129
    assert sizes[15] == sizes[-1] == 4 * 65  # the first look still saw the burst, the second did not
    assert len(set(sizes)) == 2, "one copy, not one in every step"


def test_an_idle_engine_gives_all_memory_back_and_goes_on_as_before() -> None:
    requests = requests_with_profiles(8, 4)
    with watched_engine(idle_s=0.05) as (engine, watched):
        first = tokens(engine, requests)
        wait_until(lambda: watched.runner.slot_bytes == 0)
        assert tokens(engine, requests) == first
        wait_until(lambda: watched.runner.slot_bytes == 0)
        stream = engine.stream(GenerationRequest(requests[0].prompt, 5, 0, ignore_eos=True, edit=requests[0].edit))
        got = tuple(token for chunk in stream for token in chunk.token_ids)
        assert got == engine.generate([replace(requests[0], max_tokens=5)])[0].token_ids
