"""A row gives what it gives alone, whatever method made its edit, whoever shares its batch and however vLLM runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from alignez_core.engines.slots.engine import TransformersEngine
from tests.vllm.conftest import STRONG_RANK, Start, requests_with_profiles, tokens_of

pytestmark = pytest.mark.vllm

#: Ways to run the same requests, each through another part of vLLM.
WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "chunked": {"max_num_batched_tokens": 32, "max_running": 32},
    # Too few blocks for all rows: vLLM preempts some and computes them anew.
    "preempted": {"num_gpu_blocks_override": 12, "block_size": 32, "max_running": 32},
    "without prefix cache": {"prefix_caching": False},
}


@pytest.fixture(scope="module", params=list(WAYS), ids=list(WAYS))
def engine(request: pytest.FixtureRequest, start: Start) -> Iterator[Any]:
    with start(**({"max_running": 128, "slots": 64, "rank": STRONG_RANK} | WAYS[request.param])) as loaded:
        yield loaded


def test_64_profiles_and_64_plain_requests_give_the_tokens_of_transformers(
    engine: Any, reference: TransformersEngine
) -> None:
    requests = requests_with_profiles(64, 64)
    expected = [tokens_of(reference, [request])[0] for request in requests]
    assert tokens_of(engine, requests) == expected
    bare = tokens_of(reference, [replace(request, edit=None) for request in requests])
    changed = [a != b for a, b in zip(expected, bare, strict=True)]
    assert not any(change for change, request in zip(changed, requests, strict=True) if request.edit is None)
    assert sum(changed) >= 50  # an edit of one position need not change a greedy token


def test_more_profiles_than_slots_wait_for_each_other(start: Start, reference: TransformersEngine) -> None:
    requests = requests_with_profiles(24, 8)
    with start(slots=3, rank=STRONG_RANK) as engine:
        assert tokens_of(engine, requests) == tokens_of(reference, requests)
        counts = engine.slot_counts
        assert counts.loads >= 24
        assert (counts.live, counts.waiting) == (0, 0)
