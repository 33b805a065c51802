"""The soak's checker: a planted wrong answer is found and fails the run; a tie has to be shown."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from bench.soak import Options, Outcome
from bench.soak_answers import TIE_TEMPERATURE, Answer, AnswerBook, Identity, Wrong, explain
from bench.soak_churn import Churn
from bench.soak_http import Reply
from bench.soak_load import Load
from bench.soak_memory import Watch
from bench.soak_report import findings
from bench.soak_world import Asked, SoakProfile, World, make_questions

ADA = Identity(0, "aa", None, 1)
RIGHT = Answer("Yay, hiking is fun!", "stop")
APPLIED = {"profile": "cheerful", "version": 1, "sha256": "aa", "neighbors": None, "edit_ratio": None}


def book_of(*answers: Answer) -> AnswerBook:
    book = AnswerBook()
    for answer in answers:
        book.observe(ADA, answer, {"way": "pinned", "at_s": 1.0})
    return book


@pytest.mark.parametrize(
    "planted", [Answer("Yay, biking is fun!", "stop"), Answer(RIGHT.text, "length"), Answer("Yay, b", None)]
)
@pytest.mark.parametrize("reference_first", [True, False])
def test_a_planted_wrong_answer_is_found_once(planted: Answer, reference_first: bool) -> None:
    book = AnswerBook()
    if reference_first:
        book.refer(ADA, RIGHT)
    for answer in (RIGHT, RIGHT, planted):
        book.observe(ADA, answer, {})
    book.refer(ADA, RIGHT)
    assert [(wrong.got, wrong.count) for wrong in book.wrong()] == [(planted, 1)]
    assert book.known_wrong == (1 if reference_first else 0)
    assert book.compared == book.total == 3


def test_the_beginning_that_a_client_saw_before_it_hung_up_is_right() -> None:
    book = book_of(RIGHT, Answer("Yay, hi", None), Answer("", None))
    book.refer(ADA, RIGHT)
    assert book.wrong() == []


def test_answers_without_a_solo_run_are_counted_and_compared_with_each_other() -> None:
    book = book_of(RIGHT, RIGHT)
    assert (book.compared, book.total, book.disagreements()) == (0, 2, 0)
    book.observe(ADA, Answer("other", "stop"), {})
    assert book.disagreements() == 1
    assert book.without_reference() == [ADA]


def explained(wrong: Wrong, temperature: float, replies: Mapping[str, Any]) -> str | None:
    async def ask(identity: Identity, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        assert identity == wrong.identity
        key = next(iter(changes))
        found = replies[key]
        return found(changes[key]) if callable(found) else found  # type: ignore[no-any-return]

    asyncio.run(explain(wrong, temperature, ask))
    return wrong.tie


def difference(expected: str = "Yay, hiking", got: str = "Yay, biking") -> Wrong:
    return Wrong(ADA, Answer(expected, "length"), Answer(got, "length"), 1, {})


@pytest.mark.parametrize(("apart", "tie"), [(2e-5, True), (0.1, False)])
@pytest.mark.parametrize("chat", [True, False])
def test_a_greedy_difference_is_a_tie_only_between_equally_likely_tokens(apart: float, tie: bool, chat: bool) -> None:
    tokens = [("Yay,", 3.0), (" hiking", apart)]
    if chat:
        content = [
            {"token": token, "top_logprobs": [{"logprob": -0.1}, {"logprob": -0.1 - gap}]} for token, gap in tokens
        ]
        logprobs: Any = {"content": content}
    else:
        tops = [{token: -0.1, "x": -0.1 - gap} for token, gap in tokens]
        logprobs = {"tokens": [token for token, _ in tokens], "top_logprobs": tops}
    reply = {"choices": [{"text": "Yay, hiking", "logprobs": logprobs}]}
    assert (explained(difference(), 0, {"logprobs": reply}) is not None) == tie


@pytest.mark.parametrize("tie", [True, False])
def test_a_sampled_difference_is_a_tie_only_if_a_little_temperature_makes_it_alone(tie: bool) -> None:
    def at(temperature: float) -> Mapping[str, Any]:
        assert abs(temperature / 0.8 - 1) == pytest.approx(TIE_TEMPERATURE)
        text = "Yay, biking" if tie and temperature < 0.8 else "Yay, hiking"
        return {"choices": [{"message": {"content": text}}]}

    assert (explained(difference(), 0.8, {"temperature": at}) is not None) == tie


def soaked(tamper: bool) -> Outcome:
    """A soak of one request without a server, whose answer may be a neighbour's."""
    world = World(["key"], make_questions(2), churn_questions=1, seed=0)
    profile = SoakProfile(0, "cheerful", "11111111", {1: "aa"}, lasting=True, settled=True)
    question = world.questions[1]
    body = {**question.body, "model": "base@cheerful#1", "stream": False}
    asked = Asked(0, "pinned", question, "/v1/completions", body, None, profile, 0, 1, None)
    load = Load(world, AnswerBook(), port=0, deadline_s=1)
    text = "Sadly, hiking is dull." if tamper else RIGHT.text
    load._note(asked, Reply("answered", 200, text, "stop", APPLIED))
    load.book.refer(ADA, RIGHT)
    outcome = Outcome(Options(), load.book, load, Churn(httpx.AsyncClient(), world, 1, 1), Watch(), seconds=1)
    outcome.wrong = load.book.wrong()
    return outcome


def test_a_row_that_got_its_neighbours_answer_fails_the_soak_and_is_shown() -> None:
    assert findings(soaked(tamper=False)).failed == []
    found = findings(soaked(tamper=True))
    assert found.failed == ["wrong answers"]
    assert "Sadly, hiking is dull." in found.details[0]
    assert RIGHT.text in found.details[0]


@pytest.mark.parametrize("change", [{"profile": "gloomy"}, {"version": 2}, {"profile": None, "sha256": None}])
def test_an_answer_as_somebody_else_fails_the_soak(change: dict[str, Any]) -> None:
    outcome = soaked(tamper=False)
    world = outcome.load.world
    asked = world.next_request(0)
    profile = SoakProfile(0, "cheerful", "11111111", {1: "aa"}, settled=True)
    body = {**asked.question.body, "stream": False}
    pinned = Asked(0, "pinned", asked.question, "/v1/completions", body, None, profile, 0, 1, None)
    outcome.load._note(pinned, Reply("answered", 200, "", "stop", {**APPLIED, **change}))
    assert "answers under a wrong name, version or tenant" in findings(outcome).failed


def test_a_refusal_is_expected_only_while_its_profile_goes() -> None:
    outcome = soaked(tamper=False)
    question = outcome.load.world.questions[0]
    profile = SoakProfile(0, "cheerful", "11111111", {1: "aa"}, settled=True)
    asked = Asked(0, "pinned", question, "/v1/completions", {"stream": False}, None, profile, 0, 1, None)
    assert not asked.may_be_refused(404)
    profile.unsettle()
    assert asked.may_be_refused(404)
    assert not asked.may_be_refused(500)
    profile.settled = True
    assert asked.may_be_refused(409), "it was sent before the change"


def test_a_beginning_under_a_deleted_profiles_name_is_nobodys() -> None:
    """Somebody else may have taken the name: this was the soak's own false alarm of its first half hour."""
    outcome = soaked(tamper=False)
    question = outcome.load.world.questions[1]
    profile = SoakProfile(0, "cheerful", "11111111", {1: "aa"}, settled=True)
    by_name = {"stream": True, "model": "base@cheerful#1"}
    by_id = {"stream": True, "model": "base", "profile": {"name": profile.id, "version": 1}}
    left = Reply("left", 200, "Sadly", None, None)
    for body, settled, wrong in ((by_name, True, 1), (by_name, False, 0), (by_id, False, 1)):
        outcome.load.book = AnswerBook()
        outcome.load.book.refer(ADA, RIGHT)
        profile.settled = settled
        outcome.load._note(
            Asked(0, "pinned", question, "/v1/completions", body, 9, profile, profile.epoch, 1, None), left
        )
        assert len(outcome.load.book.wrong()) == wrong
    assert outcome.load.unattributed == 1
