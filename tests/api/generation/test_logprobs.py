"""Log-probabilities of tokens that are parts of characters, in both of OpenAI's forms."""

from __future__ import annotations

from typing import Any

import pytest

from alignez_core.engines.base import StreamChunk, TokenLogprob
from api.generation.answers import Answer
from tests.api.conftest import Tenant
from tests.api.events import chunks

FACE = "\U0001f642"
#: The tokens of " 🙂é!" and the end, as a byte-level vocabulary has them.
PARTS = (b" ", b"\xf0\x9f", b"\x99", b"\x82", b"\xc3", b"\xa9!", b"")


def answer_of(parts: tuple[bytes, ...]) -> Answer:
    answer = Answer(prompt_tokens=1)
    for i, raw in enumerate(parts):
        text = raw.decode("utf-8", "replace") if raw else "</s>"
        others = (TokenLogprob(90, "\ufffd", -2.0, b"\x98"), TokenLogprob(91, "\ufffd", -3.0, b"\x97"))
        entry = TokenLogprob(i, text, -1.0, raw, others)
        answer.add(StreamChunk("", (i,), "stop" if not raw else None, (entry,)))
    return answer


def test_chat_has_each_tokens_own_bytes_which_joined_are_the_text() -> None:
    shown = answer_of(PARTS).take_logprobs(chat=True)
    assert shown is not None
    content = shown["content"]
    assert [entry["bytes"] for entry in content] == [list(raw) or None for raw in PARTS]
    assert bytes(byte for entry in content for byte in entry["bytes"] or ()).decode() == f" {FACE}\u00e9!"
    assert [other["bytes"] for other in content[1]["top_logprobs"]] == [[0x98], [0x97]]


def test_text_completions_name_bytes_that_are_no_text_and_keep_alternatives_apart() -> None:
    answer = answer_of(PARTS)
    shown = answer.take_logprobs(chat=False)
    assert shown is not None
    assert shown["tokens"] == [" ", r"bytes:\xf0\x9f", r"bytes:\x99", r"bytes:\x82", r"bytes:\xc3", r"bytes:\xa9\x21",
                               "</s>"]  # fmt: skip
    assert shown["top_logprobs"][1] == {r"bytes:\x98": -2.0, r"bytes:\x97": -3.0, r"bytes:\xf0\x9f": -1.0}
    assert shown["text_offset"] == [0, 1, 1, 1, 2, 2, 4]


def test_streamed_in_parts_it_says_the_same() -> None:
    whole = answer_of(PARTS).take_logprobs(chat=False)
    answer, parts = Answer(prompt_tokens=1), answer_of(PARTS).logprobs
    streamed: dict[str, list[Any]] = {}
    for some in (parts[:2], parts[2:5], parts[5:]):
        answer.logprobs = list(some)
        for key, values in (answer.take_logprobs(chat=False) or {}).items():
            streamed.setdefault(key, []).extend(values)
    assert streamed == whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [0, 1, 3])
def test_the_sampled_token_is_always_among_those_of_a_text_completion(tenant: Tenant, stream: bool, asked: int) -> None:
    body = {"prompt": "x", "logprobs": asked, "max_tokens": 4, "seed": 1, "stream": stream}
    reply = tenant.post("/v1/completions", json=body)
    choices = [e["choices"][0] for e in chunks(reply.text)] if stream else reply.json()["choices"]
    seen = 0
    for shown in (choice["logprobs"] for choice in choices if choice["logprobs"]):
        for token, logprob, top in zip(shown["tokens"], shown["token_logprobs"], shown["top_logprobs"], strict=True):
            assert top[token] == logprob
            assert len(top) >= max(asked, 1)
            seen += 1
    assert seen == 4


def test_an_alternative_that_was_not_sampled_does_not_hide_the_sampled_token() -> None:
    answer = Answer(prompt_tokens=1)
    entry = TokenLogprob(5, "rare", -7.0, b"rare", (TokenLogprob(6, "usual", -0.1, b"usual"),))
    answer.add(StreamChunk("rare", (5,), None, (entry,)))
    shown = answer.take_logprobs(chat=False)
    assert shown is not None
    assert shown["top_logprobs"] == [{"usual": -0.1, "rare": -7.0}]
