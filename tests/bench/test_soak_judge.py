"""The soak's judge: planted wrong answers, cut streams and growth fail it; a tie has to be shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from bench.client import Reply, ask
from bench.soak.answers import TIE_TEMPERATURE, Answer, AnswerBook, Identity, Wrong, explain
from bench.soak.churn import Churn
from bench.soak.judge import Options, Outcome, Series, Watch, judge
from bench.soak.load import Load
from bench.soak.world import Asked, SoakProfile, World, make_questions

ADA = Identity(0, "aa", None, 1)
RIGHT = Answer("Yay, hiking is fun!", "stop")
APPLIED = {"profile": "cheerful", "version": 1, "sha256": "aa"}


class Soaked:
    """A soak without a server, of requests for one lasting version whose solo run is known."""

    def __init__(self) -> None:
        self.world = World(["key"], make_questions(2))
        self.profile = SoakProfile(0, "cheerful", "1", {1: "aa"}, user="ada", lasting=True)
        client = httpx.AsyncClient()
        book = AnswerBook()
        book.references[ADA] = RIGHT
        load = Load(self.world, book, client, deadline_s=1)
        self.outcome = Outcome(Options(), book, load, Churn(client, self.world, 1), Watch(), seconds=1)

    def hear(self, reply: Reply, stream: bool = False) -> None:
        """Notes a reply to the pinned version."""
        question = self.world.questions[1]
        body = {**question.body, "model": "base@cheerful#1", "stream": stream}
        self.outcome.load.note(Asked(0, question, "/v1/chat/completions", body, self.profile, 1), reply)

    def failed(self) -> list[str]:
        self.outcome.wrong = self.outcome.book.wrong()
        return judge(self.outcome).failed


def whole(answer: Answer, applied: Mapping[str, Any] = APPLIED) -> Reply:
    choice = {"message": {"content": answer.text}, "finish_reason": answer.finish}
    return Reply("answered", 200, json.dumps({"choices": [choice], "alignez": applied}).encode())


def events(*texts: str, finish: str | None = None) -> bytes:
    made: list[dict[str, Any]] = [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in texts]
    if finish is not None:
        made.append({"choices": [{"delta": {}, "finish_reason": finish}], "alignez": APPLIED})
    return b"".join(b"data: %s\n\n" % json.dumps(event, separators=(",", ":")).encode() for event in made)


def test_the_right_answer_and_the_beginning_that_a_client_saw_before_it_hung_up_pass() -> None:
    soaked = Soaked()
    soaked.hear(whole(RIGHT))
    soaked.hear(Reply("answered", 200, events("Yay, ", "hiking is fun!", finish="stop") + b"data: [DONE]\n\n"), True)
    soaked.hear(Reply("left", 200, events("Yay, hi")), stream=True)
    assert soaked.failed() == []


@pytest.mark.parametrize(
    "reply",
    [
        whole(Answer("Yay, biking is fun!", "stop")),
        whole(Answer(RIGHT.text, "length")),
        Reply("left", 200, events("Yay, b")),
    ],
)
def test_a_row_that_got_its_neighbours_answer_fails_the_soak(reply: Reply) -> None:
    soaked = Soaked()
    soaked.hear(whole(RIGHT))
    soaked.hear(reply, stream=reply.outcome == "left")
    assert soaked.failed() == ["wrong answers"]
    assert RIGHT.text in judge(soaked.outcome).details[-1]


@pytest.mark.parametrize("change", [{"profile": "gloomy"}, {"version": 2}, {"profile": None, "sha256": None}])
def test_an_answer_as_somebody_else_fails_the_soak(change: dict[str, Any]) -> None:
    soaked = Soaked()
    soaked.hear(whole(RIGHT))
    soaked.hear(whole(RIGHT, {**APPLIED, **change}))
    assert "answers under a wrong name, version or tenant" in soaked.failed()


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (events("Yay") + b"data: [DONE]\n\n", "broken 200"),
        (events("Yay") + b'data: {"error": {"code": "engine_closed"}}\n\n', "broken 200"),
    ],
)
def test_a_stream_without_an_end_fails_the_soak(content: bytes, outcome: str) -> None:
    soaked = Soaked()
    soaked.hear(whole(RIGHT))
    soaked.hear(Reply("answered", 200, content), stream=True)
    assert soaked.failed() == [f"requests {outcome}"]


@pytest.mark.parametrize(
    ("ends", "outcome"), [("close", "broken"), ("silence", "stuck"), ("whole", "answered"), ("leave", "left")]
)
def test_the_client_notices_a_stream_that_is_cut_or_does_not_end(ends: str, outcome: str) -> None:
    block = events("Yay", ", hiking")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"%x\r\n%s\r\n" % (len(block), block) + (b"0\r\n\r\n" if ends == "whole" else b""))
        if ends != "close":
            await reader.read()
        writer.close()
        await writer.wait_closed()
        served.set()

    served = asyncio.Event()

    async def reply() -> Reply:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                leave_after = 1 if ends == "leave" else None
                reply = await ask(client, ("key", "GET", "/", None), deadline_s=0.3, leave_after=leave_after)
            await served.wait()
            return reply

    got = asyncio.run(reply())
    assert got.outcome == outcome
    assert got.first_s is not None


def test_a_refusal_is_expected_only_of_what_comes_and_goes() -> None:
    soaked = Soaked()
    soaked.hear(whole(RIGHT))
    soaked.profile.lasting = False
    soaked.hear(Reply("refused", 404))
    assert soaked.failed() == []
    soaked.profile.lasting = True
    soaked.hear(Reply("refused", 404))
    assert soaked.failed() == ["requests refused 404"]


def explained(temperature: float, reply: Any) -> str | None:
    wrong = Wrong(ADA, Answer("Yay, hiking", "length"), Answer("Yay, biking", "length"), 1)

    async def ask_alone(_: Identity, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        made: Mapping[str, Any] = reply(changes) if callable(reply) else reply
        return made

    asyncio.run(explain(wrong, temperature, ask_alone))
    return wrong.tie


@pytest.mark.parametrize(("apart", "tie"), [(2e-5, True), (0.1, False)])
@pytest.mark.parametrize("chat", [True, False])
def test_a_greedy_difference_is_a_tie_only_between_equally_likely_tokens(apart: float, tie: bool, chat: bool) -> None:
    tokens = [("Yay,", 3.0), (" hiking", apart)]
    if chat:
        tops = [[{"logprob": -0.1}, {"logprob": -0.1 - gap}] for _, gap in tokens]
        content = [{"token": token, "top_logprobs": top} for (token, _), top in zip(tokens, tops, strict=True)]
        choice: dict[str, Any] = {"message": {"content": "Yay, hiking"}, "logprobs": {"content": content}}
    else:
        ranked = [{token: -0.1, "x": -0.1 - gap} for token, gap in tokens]
        choice = {"text": "Yay, hiking", "logprobs": {"tokens": [t for t, _ in tokens], "top_logprobs": ranked}}
    assert (explained(0, {"choices": [choice]}) is not None) == tie


@pytest.mark.parametrize("tie", [True, False])
def test_a_sampled_difference_is_a_tie_only_if_a_little_temperature_makes_it_alone(tie: bool) -> None:
    def at(changes: Mapping[str, Any]) -> Mapping[str, Any]:
        assert abs(changes["temperature"] / 0.8 - 1) == pytest.approx(TIE_TEMPERATURE)
        text = "Yay, biking" if tie and changes["temperature"] < 0.8 else "Yay, hiking"
        return {"choices": [{"message": {"content": text}}]}

    assert (explained(0.8, at) is not None) == tie


@pytest.mark.parametrize(
    ("mib_a_second", "handles", "failed"),
    [
        (0.0, 0, []),
        (0.03, 0, ["api: memory, last quarter ÷ second", "straight line through the second half"]),
        (0.008, 0, ["straight line through the second half"]),
        (0.0, 40, ["more open files and threads"]),
    ],
)
def test_a_process_that_grows_fails_the_soak(mib_a_second: float, handles: int, failed: list[str]) -> None:
    soaked = Soaked()
    soaked.hear(whole(RIGHT))
    times = [5.0 * i for i in range(360)]  # half an hour
    memory = [400 + mib_a_second * at_s for at_s in times]
    soaked.outcome.watch.series["api"] = Series(times, memory, [10 + handles * at_s / 1800 for at_s in times])
    assert soaked.failed() == failed
