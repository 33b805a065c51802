"""The engine contract, on vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from alignez_core.engines.base import Engine, Span
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import EngineClosed, EngineOverloaded, InvalidInput
from tests.core.engines.contract import EngineContract, greedy, plan_for
from tests.vllm.conftest import Start

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def engine(start: Start) -> Iterator[Any]:
    with start() as loaded:
        yield loaded


class TestContract(EngineContract):
    # Chunks of other sizes go through other kernels; DESIGN asks for 1e-3.
    tolerance = 1e-3


def test_representations_are_those_of_transformers(engine: Engine, reference: TransformersEngine) -> None:
    texts = ["one two three four five", "six", "seven eight nine ten eleven twelve"]
    torch.testing.assert_close(engine.represent(texts), reference.represent(texts), atol=1e-3, rtol=1e-3)
    spans = [Span(1, 4), Span(0, 3), Span(5, 9)]
    torch.testing.assert_close(engine.represent(texts, spans), reference.represent(texts, spans), atol=1e-3, rtol=1e-3)


def test_a_plan_of_a_rank_that_the_tables_lack_is_refused_and_the_engine_goes_on(engine: Any) -> None:
    from alignez_core.editing import EditPlan

    wide = torch.ones(1, 5, engine.info.hidden_size)
    with pytest.raises(InvalidInput, match="rank 5"):
        engine.generate([greedy(edit=EditPlan((0,), wide, wide, torch.ones(1, 5)))])
    assert engine.generate([greedy()])[0].token_ids


def test_a_full_queue_refuses_streams_and_empties_again(start: Start) -> None:
    with start(max_running=1, max_waiting=1) as small:
        expected = small.generate([greedy(max_tokens=40, ignore_eos=True)])[0].text
        streams = [small.stream(greedy(max_tokens=40, ignore_eos=True)) for _ in range(2)]
        with pytest.raises(EngineOverloaded):
            small.stream(greedy())
        assert ["".join(chunk.text for chunk in stream) for stream in streams] == [expected] * 2
        assert small.load_now.running == 0


def test_a_closed_engine_ends_what_runs_and_takes_no_more(start: Start) -> None:
    closing = start(max_running=2)
    stream = iter(closing.stream(greedy(max_tokens=80, ignore_eos=True, edit=plan_for(closing))))
    next(stream)
    closing.close()
    closing.close()
    with pytest.raises(EngineClosed):
        list(stream)
    with pytest.raises(EngineClosed):
        closing.generate([greedy()])
