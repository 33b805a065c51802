"""Judges: ties, empty answers, personas; and an endpoint that is fair, biased, broken or slow."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch import Tensor

from alignez_core.engines.base import ScoreRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.errors import InvalidInput, JudgeUnavailable
from alignez_core.models.persona_nano import PERSONAS
from alignez_core.models.persona_nano.styles import ALL_STYLES, STYLES
from alignez_core.prompts import Situation
from alignez_core.proof.judges import Answered, Likelihoods, NanoJudge, SelfJudge, by_score
from alignez_core.proof.openai_judge import OpenAIJudge, criterion
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample
from research.persona_nano.corpus import make_answer

PERSONA = Persona("cheerful", "gloomy")
SAMPLE = Sample(0, "Why is the sky blue?", PERSONA)


def said(*texts: str) -> list[Answered]:
    return [Answered(Sample(i, "Why?", PERSONA), text) for i, text in enumerate(texts)]


class WordEngine(FakeEngine):
    """Nats per token by how often a word of the context's persona is in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        self.scored += requests
        found = []
        for request in requests:
            word = next((w for w in ("cheerful", "gloomy") if w in str(request.prompt)), "plain")
            found.append(torch.full((3,), -3.0 + 0.5 * str(request.continuation).count(word)))
        return found


def test_self_prefers_what_the_persona_makes_likelier_and_ties_what_is_equal() -> None:
    judge = SelfJudge(Likelihoods(WordEngine()))
    left = said("cheerful", "gloomy", "neither", "cheerful gloomy", "", "", " \n")
    right = said("neither", "neither", "also neither", "nothing", "gloomy", "", "x")
    assert judge.compare(left, right) == [1, -1, 0, 0, -1, 0, -1]
    assert judge.compare(right, left) == [-1, 1, 0, 0, 1, 0, 1]
    assert judge.scores(said("cheerful", "")) == [pytest.approx(0.5), -math.inf]
    assert judge.name == "self"


def test_a_difference_below_a_thousandth_of_a_nat_is_a_tie() -> None:
    assert by_score([0.5, 0.5, 0.5], [0.4995, 0.498, 0.6], 1e-3) == [0, 1, -1]
    assert by_score([-math.inf, -math.inf], [-math.inf, 0.0], 1e-3) == [0, -1]


def test_each_likelihood_is_computed_once_and_apart_by_situation() -> None:
    engine = WordEngine()
    likelihoods = Likelihoods(engine)
    answers = said("cheerful", "gloomy")
    likelihoods.per_token(answers, "help")
    likelihoods.per_token([*answers, *said("cheerful")], "help")
    assert len(engine.scored) == 2
    assert likelihoods.per_token(answers, "harm") == [-3.0, -2.5]
    elsewhere = [Answered(SAMPLE, "cheerful", Situation("own_system", system="Be brief."))]
    likelihoods.per_token(elsewhere, "help")
    assert len(engine.scored) == 5
    assert "Be brief." in str(engine.scored[-1].prompt)


def test_a_contrast_counts_no_token_beyond_its_bound() -> None:
    class CopyingEngine(WordEngine):
        """The second token is a word of the persona's own that its prompt makes all but certain."""

        def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
            return [torch.tensor([-1.0, -0.1 if "cheerful" in str(r.prompt) else -9.0, -1.0]) for r in requests]

    likelihoods = Likelihoods(CopyingEngine())
    answers = [*said("cheerfully"), *said(" ")]
    assert likelihoods.contrast(answers, 0.3) == [pytest.approx(0.1), 0.0]
    assert likelihoods.contrast(answers, 99.0) == [pytest.approx(8.9 / 3), 0.0]


def test_closing_the_judge_closes_the_model_that_it_owns() -> None:
    engine = WordEngine()
    SelfJudge(Likelihoods(engine)).close()
    engine.tokenize("still open")
    SelfJudge(Likelihoods(engine), "model:x", owned=engine).close()
    with pytest.raises(Exception, match="closed"):
        engine.represent(["x"])


@pytest.mark.parametrize("persona", PERSONAS, ids=lambda p: p.name)
def test_nano_s_judge_counts_the_preferred_style_and_its_opposite(persona: Any) -> None:
    rng = random.Random(persona.name)
    sample = Sample(0, "x", Persona(persona.preferred, persona.dispreferred))
    liked, disliked, plain = (
        Answered(sample, make_answer(rng, ALL_STYLES[name], "skating"))
        for name in (persona.preferred_style, persona.dispreferred_style, "plain")
    )
    judge = NanoJudge()
    assert judge.scores([liked, disliked, plain, Answered(sample, "")]) == [1.0, -1.0, 0.0, 0.0]
    assert judge.compare([liked, plain, plain], [plain, disliked, Answered(sample, "no words of it")]) == [1, 1, 0]


def test_nano_s_judge_names_a_persona_that_it_does_not_know() -> None:
    assert "cheerful" in STYLES
    with pytest.raises(InvalidInput, match="'zorbly'"):
        NanoJudge().scores([Answered(Sample(0, "x", Persona("zorbly", "quaxic")), "y")])


Reply = Callable[[dict[str, Any]], str | int]


class Endpoint:
    """A chat completions endpoint on this machine; `reply` gives the text, or a status."""

    def __init__(self, reply: Reply) -> None:
        endpoint = self
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.bodies.append(body)
                endpoint.keys.append(self.headers.get("Authorization"))
                found = reply(body)
                status, text = (found, "") if isinstance(found, int) else (200, found)
                payload = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                try:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(payload)
                except OSError:
                    pass  # the caller has given up

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Endpoint]]:
    made: list[Endpoint] = []

    def start(reply: Reply) -> Endpoint:
        made.append(Endpoint(reply))
        return made[-1]

    yield start
    for endpoint in made:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def answers_of(body: dict[str, Any]) -> tuple[str, str]:
    _, first, second = body["messages"][1]["content"].split("## Assistant ")
    return first[3:].strip(), second[3:].strip()


def fair(body: dict[str, Any]) -> str:
    first, second = (len(text) for text in answers_of(body))
    return f"{min(first, 10)} {min(second, 10)}"


def ask(endpoint: Endpoint, left: list[Answered], right: list[Answered], **settings: Any) -> list[int]:
    judge = OpenAIJudge(endpoint.url, "judge-1", "secret", pause=lambda seconds: None, **settings)
    try:
        return judge.compare(left, right)
    finally:
        judge.close()


def test_both_orders_are_asked_and_a_steady_verdict_counts(serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(fair)
    assert ask(endpoint, said("longer", "a", "same"), said("short", "bbbb", "four")) == [1, -1, 0]
    assert len(endpoint.bodies) == 6
    pairs = {answers_of(body) for body in endpoint.bodies}
    assert {("longer", "short"), ("short", "longer")} <= pairs
    body = endpoint.bodies[0]
    assert body["model"] == "judge-1"
    assert body["temperature"] == 0
    assert "in a cheerful manner" in body["messages"][0]["content"]
    assert body["messages"][1]["content"].startswith("Question: Why?")
    assert set(endpoint.keys) == {"Bearer secret"}


def test_a_verdict_that_changes_with_the_order_is_a_tie(serve: Callable[[Reply], Endpoint]) -> None:
    assert ask(serve(lambda body: "9 3"), said("a", "b"), said("c", "d")) == [0, 0]


@pytest.mark.parametrize("text", ["8 7", " 8, 7\n", "8.5 7.0", "8/7", "10 9 because it is kinder"])
def test_scores_in_usual_forms_are_read(serve: Callable[[Reply], Endpoint], text: str) -> None:
    endpoint = serve(lambda body: text if answers_of(body)[0] == "a" else "3 9")
    assert ask(endpoint, said("a"), said("b")) == [1]


@pytest.mark.parametrize(
    ("reply", "says"), [("Both are fine.", "Both are fine"), ("11 3", "11 3"), ("7", "'7'"), (500, "500")]
)
def test_nonsense_ends_after_bounded_attempts(serve: Callable[[Reply], Endpoint], reply: str | int, says: str) -> None:
    endpoint = serve(lambda body: reply)
    with pytest.raises(JudgeUnavailable, match="failed 3 times") as caught:
        ask(endpoint, said("a"), said("b"), at_once=1)
    assert says in str(caught.value)
    assert 3 <= len(endpoint.bodies) <= 6


def test_an_endpoint_that_recovers_is_heard(serve: Callable[[Reply], Endpoint]) -> None:
    calls: Iterator[int | str] = iter([503, "what?"])
    waited: list[float] = []
    endpoint = serve(lambda body: next(calls, None) or fair(body))
    judge = OpenAIJudge(endpoint.url, "j", at_once=1, pause=waited.append)
    assert judge.compare(said("longer"), said("x")) == [1]
    assert waited == [2.0, 4.0]
    assert set(endpoint.keys) == {None}
    judge.close()


def test_one_bad_pair_gives_no_verdict_at_all(serve: Callable[[Reply], Endpoint]) -> None:
    endpoint = serve(lambda body: "?" if "bad" in answers_of(body) else fair(body))
    with pytest.raises(JudgeUnavailable):
        ask(endpoint, said("good", "bad"), said("x", "y"))


def test_a_slow_endpoint_and_one_that_is_not_there_are_unavailable(serve: Callable[[Reply], Endpoint]) -> None:
    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.4)
        return "9 3"

    with pytest.raises(JudgeUnavailable, match="Timeout"):
        ask(serve(slow), said("a"), said("b"), timeout_s=0.05, attempts=2, at_once=1)
    gone = serve(fair)
    gone.server.shutdown()
    gone.server.server_close()
    with pytest.raises(JudgeUnavailable, match="ConnectError"):
        ask(gone, said("a"), said("b"), attempts=2, at_once=1)


def test_the_paper_s_criterion_is_for_the_paper_s_persona() -> None:
    assert "harmlessness, helpfulness" in criterion(Persona())
    assert "cheerful; You love rain." in criterion(Persona("cheerful", "gloomy", "You love rain."))
