"""The model's own data: which invented queries count, clean texts, and seeds that belong to the row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from alignez_core.engines.base import Completion, FinishReason, GenerationRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.prompts import ChatFormat
from alignez_core.self_preference import (
    clean,
    given_answer,
    given_characteristics,
    invent_queries,
    one_line,
    row_seed,
)

KNOWN = ("How do I bake bread?", "Where is the sea?")


class ScriptedEngine(FakeEngine):
    """Says what it is told to, in the order of the requests."""

    def __init__(self, *said: str | tuple[str, FinishReason]) -> None:
        super().__init__()
        self.said: list[tuple[str, FinishReason]] = [(text, "stop") if isinstance(text, str) else text for text in said]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.requests += requests
        said = [self.said[i % len(self.said)] for i in range(len(requests))]
        return [Completion(text, tuple(range(len(text.split()))), reason) for text, reason in said]


def invented(*said: str | tuple[str, FinishReason], count: int = 10) -> list[str]:
    return invent_queries(ScriptedEngine(*said), KNOWN, count, seed=0)[0]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "Why so?",  # too short
        "Why " * 100,  # too long
        ("Where can I learn to", "length"),  # not finished
        "Where is half of \ufffd?",
        "Where is the nul \x00 gone?",
        "how do I BAKE bread?",  # one of the given ones
        "Where\n  is the   sea?",
    ],
)
def test_a_malformed_or_known_query_is_dropped(bad: str | tuple[str, FinishReason]) -> None:
    assert invented(bad, "What grows in winter?") == ["What grows in winter?"]


def test_white_space_is_made_one_space_and_repetitions_count_once() -> None:
    said = ("  What  grows\tin winter? ", "what grows in WINTER?", "Who counts the stars?")
    assert invented(*said) == ["What grows in winter?", "Who counts the stars?"]


def test_no_more_come_back_than_asked_for_and_every_token_counts() -> None:
    engine = ScriptedEngine(*(f"What about question {i}?" for i in range(6)))
    texts, tokens = invent_queries(engine, KNOWN, 3, seed=0)
    assert texts == [f"What about question {i}?" for i in range(3)]
    assert len(engine.requests) == 6  # twice as many are drawn
    assert tokens == 6 * 4


def test_the_examples_shown_are_given_queries_and_the_text_ends_at_the_line() -> None:
    engine = ScriptedEngine("What grows in winter?")
    invent_queries(engine, KNOWN, 2, seed=0)
    for request in engine.requests:
        assert all(f"- {query}\n" in request.prompt for query in KNOWN)
        assert request.stop == ("\n",)
    assert len({request.seed for request in engine.requests}) == 4


def test_no_nul_is_left_in_any_text() -> None:
    assert clean("a\x00b") == "a\ufffdb"
    assert one_line(" a\x00 \n b\tc ") == "a\ufffd b c"
    assert given_characteristics("Go\x00od\n\nday") == "read like this: Go\ufffdod day"


def test_a_given_answer_stands_where_the_model_s_own_would() -> None:
    chat = FakeEngine(prompt_format=ChatFormat(lambda messages: "x"))
    assert given_answer(FakeEngine(), "Yes. ") == " Yes."
    assert given_answer(chat, " Yes. ") == "Yes."


def test_seeds_belong_to_the_fit_the_row_and_the_kind_of_text() -> None:
    seeds = [row_seed(s, i, k) for s in (0, 1) for i in (0, 1, 2) for k in ("answer/alone", "help_characteristics")]
    assert len(set(seeds)) == len(seeds)
    assert (
        row_seed(0, 1, "answer/alone") == 48383969355051
    )  # stored versions name seeds: they must mean the same tomorrow
    assert all(0 <= seed < 2**48 for seed in seeds)
