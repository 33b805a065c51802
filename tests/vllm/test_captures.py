"""Outputs of many texts come in one message, in pieces when they are many, and nothing is left with the workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from alignez_core.engines.base import Engine, Span
from alignez_core.engines.vllm.workers import Workers
from alignez_core.errors import AlignezError
from tests.vllm.conftest import N_LAYERS, WIDTH, Start

pytestmark = pytest.mark.vllm

TEXTS = [f"text number {i} {'and more ' * (i % 3)}" for i in range(10)]


@pytest.fixture(scope="module")
def engine(start: Start) -> Iterator[Any]:
    with start() as loaded:
        yield loaded


@dataclass
class Messages:
    """The keys that each message asked for, and what the workers still hold of them afterwards."""

    asked: list[list[str]] = field(default_factory=list)
    left: list[list[object]] = field(default_factory=list)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Messages:
    sent = Messages()
    call = Workers.call

    async def noting(workers: Workers, method: str, *args: Any) -> list[Any]:
        answers = await call(workers, method, *args)
        if method == "alignez_take_captured":
            sent.asked.append(args[0])
            sent.left += await call(workers, method, *args)
        return answers

    monkeypatch.setattr(Workers, "call", noting)
    return sent


def test_one_message_fetches_all_texts_of_a_call(engine: Engine, messages: Messages) -> None:
    alone = torch.cat([engine.represent([text]) for text in TEXTS])
    assert [len(keys) for keys in messages.asked] == [1] * len(TEXTS)
    messages.asked.clear()
    torch.testing.assert_close(engine.represent(TEXTS), alone, atol=1e-4, rtol=1e-4)
    assert [len(keys) for keys in messages.asked] == [len(TEXTS)]


def test_many_texts_come_in_pieces_and_give_the_same(
    engine: Engine, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_core.engines.vllm import captures

    spans = [Span(1, 3 + i) for i in range(len(TEXTS))]
    together = engine.represent(TEXTS, spans)
    messages.asked.clear()
    monkeypatch.setattr(captures, "_MOST_BYTES", 4 * 4 * N_LAYERS * WIDTH)
    torch.testing.assert_close(engine.represent(TEXTS, spans), together, atol=1e-4, rtol=1e-4)
    assert [len(keys) for keys in messages.asked] == [4, 4, 2]


def test_a_call_that_fails_leaves_nothing_with_the_workers(
    engine: Engine, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignez_core.engines.vllm.outputs import Outputs

    last, ran = Outputs.last, []

    async def failing(outputs: Outputs, prompt: list[int], params: Any) -> Any:
        ran.append(await last(outputs, prompt, params))
        if len(ran) == 3:
            raise AlignezError("lost")
        return ran[-1]

    monkeypatch.setattr(Outputs, "last", failing)
    with pytest.raises(AlignezError, match="lost"):
        engine.represent(TEXTS[:3])
    (keys,) = messages.asked
    assert len(keys) == 3
    assert messages.left == [[None] * 3]
