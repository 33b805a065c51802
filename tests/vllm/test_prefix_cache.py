"""Prompts are cached once for all profiles, and nothing that an edit touched is ever used for another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from tests.vllm.conftest import Start, vllm_plan

pytestmark = pytest.mark.vllm

BLOCK = 32
SYSTEM = [5 + i % 200 for i in range(BLOCK * 2)]


@pytest.fixture(scope="module")
def shared(start: Start) -> Iterator[Any]:
    with start(block_size=BLOCK) as loaded:
        yield loaded


@pytest.fixture
def engine(shared: Any) -> Any:
    """With an empty cache, as after a start, which takes much longer; only vLLM itself can empty it."""
    assert shared._run(shared._llm.reset_prefix_cache())
    return shared


def request(prompt: list[int], edit: EditPlan | None, tokens: int = 8) -> GenerationRequest:
    return GenerationRequest(prompt, tokens, 0, ignore_eos=True, edit=edit)


def test_a_shared_prompt_is_cached_for_every_user_and_each_gets_their_own_answer(
    engine: Any, reference: TransformersEngine
) -> None:
    asked = [request([*SYSTEM, 9, 9, 9], vllm_plan(seed)) for seed in (0, 1, 2, 3, 5)] + [
        request([*SYSTEM, 9, 9, 9], None)
    ]
    got = [engine.generate([one])[0] for one in asked]
    assert [one.cached_tokens for one in got] == [0] + [len(SYSTEM)] * 5
    assert [one.token_ids for one in got] == [reference.generate([one])[0].token_ids for one in asked]
    assert len({one.token_ids for one in got}) == 6


def test_a_block_with_the_prompts_last_token_belongs_to_its_plan(engine: Any, reference: TransformersEngine) -> None:
    # The prompt ends with a block, so that a whole block holds an edited position.
    asked = [request(SYSTEM, plan, 40) for plan in (vllm_plan(0), vllm_plan(5), None, vllm_plan(0))]
    for one in asked:
        assert engine.generate([one])[0].token_ids == reference.generate([one])[0].token_ids


def test_a_profile_changed_under_the_same_name_reuses_nothing_of_its_old_self(
    engine: Any, reference: TransformersEngine
) -> None:
    weak, strong = vllm_plan(3), EditPlan.additive([0, 2], vllm_plan(3).V[:, 0], 0.5)
    for plan in (weak, strong, weak):
        one = request(SYSTEM, plan, 40)
        assert engine.generate([one])[0].token_ids == reference.generate([one])[0].token_ids


@pytest.mark.parametrize("seed", range(6))
def test_a_second_turn_equals_a_cold_run(engine: Any, reference: TransformersEngine, seed: int) -> None:
    plan = vllm_plan(seed)
    first = engine.generate([request(SYSTEM[:40], plan, 30)])[0]
    # The conversation so far, as the prompt of the next turn, for the same profile and for none.
    talk = [*SYSTEM[:40], *first.token_ids, 9, 9]
    for edit in (plan, None):
        one = request(talk, edit, 12)
        assert engine.generate([one])[0].token_ids == reference.generate([one])[0].token_ids


def test_an_edit_of_all_positions_marks_every_block(engine: Any, reference: TransformersEngine) -> None:
    everywhere = vllm_plan(4)
    assert everywhere.positions == "all"
    asked = [request([*SYSTEM, 9], edit) for edit in (None, everywhere, None)]
    got = [engine.generate([one])[0] for one in asked]
    assert [one.cached_tokens for one in got] == [0, 0, len(SYSTEM)]
    assert [one.token_ids for one in got] == [reference.generate([one])[0].token_ids for one in asked]


def test_a_capture_of_early_positions_reads_no_cache(engine: Any, reference: TransformersEngine) -> None:
    from alignez_core.engines.base import Span

    prompt = [*SYSTEM, 9]
    engine.generate([replace(request(prompt, None), max_tokens=1)])
    span = [Span(3, 40)]
    got, expected = engine.represent([prompt], span), reference.represent([prompt], span)
    assert float((got - expected).abs().max()) < 1e-3


def test_the_answer_to_a_query_goes_on_from_the_pass_that_looked_it_up(
    engine: Any, reference: TransformersEngine
) -> None:
    # As a sample-conditional request does: the query's embedding first, then an edit made for this query alone.
    question = "Which of the birds that live by the sea can stay longest under the water?"
    looked_up = engine.prompt_format.wrap(question)
    chat = engine.prompt_format.render([{"role": "user", "content": question}])
    assert chat == looked_up
    engine.represent([looked_up])
    one = GenerationRequest(chat, 8, 0, ignore_eos=True, edit=vllm_plan(0))
    got = engine.generate([one])[0]
    # Every whole block before the last token, which is the first that the edit touches.
    assert got.cached_tokens == (got.prompt_tokens - 1) // BLOCK * BLOCK > 0
    assert got.token_ids == reference.generate([one])[0].token_ids


def test_a_query_is_looked_up_from_the_prefix_that_earlier_requests_left(engine: Any) -> None:
    engine.represent([SYSTEM])
    cold = engine.represent([[*SYSTEM, 9, 8]])
    engine.generate([request([*SYSTEM, 7, 7], vllm_plan(1))])
    again = engine.represent([[*SYSTEM, 9, 8]])
    assert float((cold - again).abs().max()) < 1e-3
