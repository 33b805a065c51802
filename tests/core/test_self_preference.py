"""The model's own data: which invented queries count, clean texts, and seeds that belong to the row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from alignez_core.engines.base import Completion, FinishReason, GenerationRequest
from alignez_core.engines.fake_engine import FakeEngine
from alignez_core.fit_config import FitConfig, FitQuery, FitSpec, GivenPair
from alignez_core.prompts import Persona
from alignez_core.self_preference import (
    TextPair,
    generate_characteristics,
    generate_responses,
    given_characteristics,
    given_responses,
    invent_queries,
    make_samples,
)

KNOWN = (FitQuery("How do I bake bread?"), FitQuery("Where is the sea?"))
SAMPLES = make_samples(FitSpec(Persona("cheerful", "gloomy"), KNOWN))


class ScriptedEngine(FakeEngine):
    """Says what it is told to, in the order of the requests."""

    def __init__(self, *said: str | tuple[str, FinishReason]) -> None:
        super().__init__()
        self.said = [(text, "stop") if isinstance(text, str) else text for text in said]

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
        assert all(f"- {query.text}\n" in request.prompt for query in KNOWN)
        assert request.stop == ("\n",)
    assert len({request.seed for request in engine.requests}) == 4


def test_no_nul_is_left_in_any_text() -> None:
    engine = ScriptedEngine(" a\x00b ", "c\x00")
    assert generate_characteristics(engine, SAMPLES, FitConfig())[0] == TextPair("a\ufffdb", "c\ufffd", 2)
    characteristics = {sample.index: TextPair("be kind", "be rude") for sample in SAMPLES}
    assert generate_responses(engine, SAMPLES, characteristics, FitConfig())[0] == TextPair(" a\ufffdb", "c\ufffd", 2)
    assert given_characteristics(("Go\x00od\n\nday", "Bad")).help == "read like this: Go\ufffdod day"


def test_characteristics_are_stripped_and_responses_keep_their_leading_space() -> None:
    engine = ScriptedEngine("  be warm \n")
    assert generate_characteristics(engine, SAMPLES, FitConfig())[1].help == "be warm"
    characteristics = {sample.index: TextPair("be kind", "be rude") for sample in SAMPLES}
    assert generate_responses(engine, SAMPLES, characteristics, FitConfig())[1].help == "  be warm"
    assert given_responses(engine, ("Yes. ", "No.")) == TextPair(" Yes.", " No.")


def test_seeds_differ_by_sample_side_and_kind_and_not_by_batch() -> None:
    def seeds(samples: Sequence[object]) -> list[int | None]:
        engine = ScriptedEngine("x")
        generate_characteristics(engine, samples, FitConfig())  # type: ignore[arg-type]
        generate_responses(engine, samples, dict.fromkeys(range(2), TextPair("a", "b")), FitConfig())  # type: ignore[arg-type]
        return [request.seed for request in engine.requests]

    together = seeds(SAMPLES)
    assert len(set(together)) == 8
    assert set(seeds(SAMPLES[:1]) + seeds(SAMPLES[1:])) == set(together)


def test_each_side_is_prompted_with_its_own_words() -> None:
    engine = ScriptedEngine("x")
    generate_responses(engine, SAMPLES[:1], {0: TextPair("be kind", "be rude")}, FitConfig())
    help_, harm = (str(request.prompt) for request in engine.requests)
    assert help_ == "You are a cheerful assistant. Your answer should be kind\nHow do I bake bread?\nAnswer:"
    assert harm == "Pretend you are a gloomy assistant. Your answer should be rude\nHow do I bake bread?\nAnswer:"


def test_samples_are_numbered_queries_first_then_pairs_then_the_model_s_own() -> None:
    spec = FitSpec(Persona("cheerful", "gloomy"), KNOWN, (GivenPair("Who?", "Me", "You"),))
    samples = make_samples(spec, ["Own?"])
    assert [sample.query for sample in samples] == ["How do I bake bread?", "Where is the sea?", "Who?", "Own?"]
    assert [sample.index for sample in samples] == [0, 1, 2, 3]
    assert [sample.given for sample in samples] == [None, None, ("Me", "You"), None]
