"""What every engine must do, whatever runs the model: a suite to be run with an `engine` fixture.

Subclass `EngineContract` in a test module that defines the module-scoped fixture `engine`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest, ScoreRequest, Span
from alignez_core.errors import ContextTooLong, InvalidInput, ModelMismatch

PROMPT = "one two three four five six seven eight"


def plan_for(engine: Engine, seed: int = 0, strength: float = 2.0, steps: int | None = None) -> EditPlan:
    """A strong random plan that fits the engine's model."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, engine.info.hidden_size, generator=generator)
    return EditPlan.additive([0, engine.info.n_layers - 1], rows * 8, strength, steps=steps)


def greedy(prompt: str = PROMPT, max_tokens: int = 8, **fields: object) -> GenerationRequest:
    return GenerationRequest(prompt, max_tokens, 0, **fields)  # type: ignore[arg-type]


class EngineContract:
    #: How far two computations of one representation may be apart.
    tolerance = 1e-5

    def test_satisfies_the_protocol_and_states_its_facts(self, engine: Engine) -> None:
        assert isinstance(engine, Engine)
        assert engine.info.n_layers > 1
        assert engine.info.prompt_format == engine.prompt_format.name

    def test_completions_come_in_the_order_of_the_requests(self, engine: Engine) -> None:
        requests = [greedy(f"{PROMPT} {i}") for i in range(5)]
        together = engine.generate(requests)
        assert together == [engine.generate([request])[0] for request in requests]
        assert len({completion.text for completion in together}) > 1

    def test_a_stream_gives_the_text_tokens_and_reason_of_generate(self, engine: Engine) -> None:
        request = greedy(logprobs=1, edit=plan_for(engine))
        chunks = list(engine.stream(request))
        whole = engine.generate([request])[0]
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
        assert chunks[-1].prompt_tokens == whole.prompt_tokens == len(engine.tokenize(PROMPT))

    def test_a_stream_can_be_read_in_an_event_loop_without_blocking_it(self, engine: Engine) -> None:
        async def read() -> tuple[str, int]:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticker = asyncio.create_task(tick())
            text = "".join([chunk.text async for chunk in engine.stream(greedy(max_tokens=20, ignore_eos=True))])
            ticker.cancel()
            return text, ticks

        text, ticks = asyncio.run(read())
        assert text == engine.generate([greedy(max_tokens=20, ignore_eos=True)])[0].text
        assert ticks > 1

    def test_an_edit_changes_the_answer_and_strength_zero_does_not(self, engine: Engine) -> None:
        plain = engine.generate([greedy()])[0]
        assert engine.generate([greedy(edit=plan_for(engine))])[0].token_ids != plain.token_ids
        assert engine.generate([greedy(edit=plan_for(engine, strength=0.0))])[0] == plain

    def test_max_tokens_ends_with_length(self, engine: Engine) -> None:
        completion = engine.generate([greedy(max_tokens=3, ignore_eos=True)])[0]
        assert (len(completion.token_ids), completion.finish_reason) == (3, "length")

    def test_a_stop_string_ends_the_text_before_it(self, engine: Engine) -> None:
        whole = engine.generate([greedy(max_tokens=12, ignore_eos=True)])[0].text
        stop = whole[5:7]
        request = greedy(max_tokens=12, ignore_eos=True, stop=(stop,))
        completion = engine.generate([request])[0]
        assert completion.text == whole[: whole.index(stop)]
        assert completion.finish_reason == "stop"
        assert "".join(chunk.text for chunk in engine.stream(request)) == completion.text

    def test_a_stop_token_ends_the_answer_and_leaves_no_text(self, engine: Engine) -> None:
        free = engine.generate([greedy(max_tokens=12, ignore_eos=True)])[0]
        stop = free.token_ids[5]
        request = greedy(max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
        completion = engine.generate([request])[0]
        at = free.token_ids.index(stop)
        assert completion.token_ids == free.token_ids[: at + 1]
        assert completion.finish_reason == "stop"
        before = engine.generate([greedy(max_tokens=max(at, 1), ignore_eos=True)])[0].text
        assert completion.text == (before if at else "")
        assert "".join(chunk.text for chunk in engine.stream(request)) == completion.text

    def test_a_stop_token_outside_the_vocabulary_is_refused(self, engine: Engine) -> None:
        size = engine.info.vocab_size
        with pytest.raises(InvalidInput, match=f"stop_token_ids: {size} is not below the vocabulary's {size}"):
            engine.generate([greedy(stop_token_ids=(size,))])
        with pytest.raises(InvalidInput):
            greedy(stop_token_ids=(-1,))

    def test_a_seed_repeats_and_another_does_not(self, engine: Engine) -> None:
        request = GenerationRequest(PROMPT, 12, 1.0, seed=7, ignore_eos=True)
        first = engine.generate([request])[0]
        assert engine.generate([replace(request, seed=8), request])[1] == first
        assert engine.generate([replace(request, seed=8)])[0].token_ids != first.token_ids

    def test_logprobs_come_one_per_token_with_the_alternatives_asked_for(self, engine: Engine) -> None:
        completion = engine.generate([greedy(logprobs=3)])[0]
        assert completion.logprobs is not None
        assert [entry.token_id for entry in completion.logprobs] == list(completion.token_ids)
        assert all(len(entry.top) == 3 and entry.logprob < 0 for entry in completion.logprobs)
        written = b"".join(entry.raw for entry in completion.logprobs)
        assert written.decode("utf-8", "replace") == completion.text
        assert engine.generate([greedy()])[0].logprobs is None

    def test_a_request_over_the_context_is_refused_with_the_numbers(self, engine: Engine) -> None:
        limit = engine.info.context_length
        with pytest.raises(ContextTooLong) as refused:
            engine.stream(greedy(max_tokens=limit))
        assert refused.value.context_length == limit
        with pytest.raises(ContextTooLong):
            engine.generate([greedy(max_tokens=limit)])

    def test_a_plan_of_another_width_is_refused(self, engine: Engine) -> None:
        foreign = EditPlan.additive([0], torch.ones(1, engine.info.hidden_size + 1))
        with pytest.raises(ModelMismatch):
            engine.generate([greedy(edit=foreign)])

    def test_a_closed_stream_ends_and_the_others_go_on(self, engine: Engine) -> None:
        expected = engine.generate([greedy(max_tokens=30, ignore_eos=True)])[0].text
        closed, open_ = (engine.stream(greedy(max_tokens=30, ignore_eos=True)) for _ in range(2))
        next(iter(closed))
        closed.close()
        closed.close()
        assert "".join(chunk.text for chunk in open_) == expected

    def test_represent_gives_one_row_per_text_and_layer(self, engine: Engine) -> None:
        texts = [PROMPT, "one two", f"{PROMPT} nine ten"]
        rows = engine.represent(texts)
        assert rows.shape == (3, engine.info.n_layers, engine.info.hidden_size)
        assert rows.dtype == torch.float32
        single = torch.cat([engine.represent([text]) for text in texts])
        torch.testing.assert_close(rows, single, atol=self.tolerance, rtol=self.tolerance)
        last = [Span(len(engine.tokenize(text)) - 1, len(engine.tokenize(text))) for text in texts]
        torch.testing.assert_close(engine.represent(texts, last), rows, atol=self.tolerance, rtol=self.tolerance)

    def test_a_span_is_the_mean_of_its_positions(self, engine: Engine) -> None:
        each = torch.cat([engine.represent([PROMPT], [Span(t, t + 1)]) for t in range(2, 5)])
        torch.testing.assert_close(
            engine.represent([PROMPT], [Span(2, 5)])[0], each.mean(0), atol=self.tolerance, rtol=self.tolerance
        )

    def test_a_span_beyond_the_text_is_refused(self, engine: Engine) -> None:
        with pytest.raises(InvalidInput):
            engine.represent(["one"], [Span(0, 500)])

    def test_scores_are_log_probabilities_per_token(self, engine: Engine) -> None:
        scores = engine.score([ScoreRequest(PROMPT, " nine ten"), ScoreRequest("one", " two")])
        assert [tuple(score.shape) for score in scores] == [
            (len(engine.tokenize(" nine ten")),),
            (len(engine.tokenize(" two")),),
        ]
        assert all(bool((score <= 0).all()) for score in scores)


def wait_until(condition, seconds: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    """Waits for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
