"""Outputs of many texts come in one message, in pieces when they are many, and nothing is left with the workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from alignez_core.engines.base import Engine, Span
from alignez_core.errors import AlignezError
from tests.vllm.conftest import N_LAYERS, WIDTH, Start

pytestmark = pytest.mark.vllm

TEXTS = [f"text number {i} {'and more ' * (i % 3)}" for i in range(10)]


@pytest.fixture(scope="module")
def engine(start: Start) -> Iterator[Any]:
    with start() as loaded:
        yield loaded


@pytest.fixture
def messages(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The keys of every message that fetches outputs."""
    sent: list[list[str]] = []
    rpc = engine._llm.collective_rpc

    async def noting(method: str, *, args: tuple[Any, ...]) -> Any:
        if method == "alignez_take_captured":
            sent.append(args[0])
        return await rpc(method, args=args)

    monkeypatch.setattr(engine._llm, "collective_rpc", noting)
    return sent


def test_one_message_fetches_all_texts_of_a_call(engine: Engine, messages: list[list[str]]) -> None:
    alone = torch.cat([engine.represent([text]) for text in TEXTS])
    assert [len(keys) for keys in messages] == [1] * len(TEXTS)
    messages.clear()
    torch.testing.assert_close(engine.represent(TEXTS), alone, atol=1e-4, rtol=1e-4)
    assert [len(keys) for keys in messages] == [len(TEXTS)]


def test_many_texts_come_in_pieces_and_give_the_same(
    engine: Engine, messages: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_core.engines.vllm import captures

    spans = [Span(1, 3 + i) for i in range(len(TEXTS))]
    together = engine.represent(TEXTS, spans)
    messages.clear()
    monkeypatch.setattr(captures, "_MOST_BYTES", 4 * 4 * N_LAYERS * WIDTH)
    torch.testing.assert_close(engine.represent(TEXTS, spans), together, atol=1e-4, rtol=1e-4)
    assert [len(keys) for keys in messages] == [4, 4, 2]


def test_a_call_that_fails_leaves_nothing_with_the_workers(
    engine: Any, messages: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    last, ran = engine._outputs.last, []

    async def failing(prompt: list[int], params: Any) -> Any:
        ran.append(await last(prompt, params))
        if len(ran) == 3:
            raise AlignezError("lost")
        return ran[-1]

    monkeypatch.setattr(engine._outputs, "last", failing)
    with pytest.raises(AlignezError, match="lost"):
        engine.represent(TEXTS[:3])
    monkeypatch.undo()
    (keys,) = messages
    assert len(keys) == 3
    assert engine._run(engine._llm.collective_rpc("alignez_take_captured", args=(keys,))) == [[None] * 3]
