"""The plugin in every model that it lists: plain rows keep every bit, edited ones get the tokens of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alignez_core.engines.slots.engine import TransformersEngine
from tests.vllm.conftest import Start, requests_with_profiles, save_tiny, tokens_of

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_plain_request_is_bit_equal_with_and_without_the_plugin(start: Start, compiled: bool) -> None:
    requests = [replace(request, logprobs=3) for request in requests_with_profiles(0, 6)]
    found = []
    for slots in (0, 8):
        with start(slots=slots, compile=compiled) as engine:
            found.append([engine.generate([request])[0] for request in requests])
    assert found[0] == found[1]  # tokens, and every log-probability to the last bit


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"])
def test_every_listed_architecture_is_edited_like_in_transformers(kind: str, start: Start, tmp_path: Path) -> None:
    directory = save_tiny(kind, tmp_path)
    requests = requests_with_profiles(6, 2)
    with TransformersEngine.load(directory) as reference, start(directory) as engine:
        assert tokens_of(engine, requests) == tokens_of(reference, requests)
