"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Tenant
from tests.api.events import BARE, chunks


def complete(tenant: Tenant, prompt: Any = "Once", **more: Any) -> Any:
    return tenant.post("/v1/completions", json={"model": "fake", "prompt": prompt, **more})


def test_a_prompt_is_continued_as_it_stands(tenant: Tenant) -> None:
    body = complete(tenant, seed=1).json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["alignez"] == BARE
    assert tenant.engine.requests[-1].prompt == tenant.engine.tokenize("Once")
    assert tenant.engine.requests[-1].stop == ()
    assert tenant.engine.requests[-1].max_tokens == 16


def test_text_and_token_ids_are_the_same_prompt(tenant: Tenant) -> None:
    text = complete(tenant, "Once upon", seed=1).json()["choices"]
    assert complete(tenant, tenant.engine.tokenize("Once upon"), seed=1).json()["choices"] == text
    assert complete(tenant, [tenant.engine.tokenize("Once upon")], seed=1).json()["choices"] == text


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_with_several_choices_come_in_order(tenant: Tenant, stream: bool) -> None:
    alone = [c["text"] for prompt in ("One", "Two") for c in complete(tenant, prompt, n=2, seed=3).json()["choices"]]
    reply = complete(tenant, ["One", "Two"], n=2, seed=3, stream=stream, stream_options={"include_usage": True})
    if stream:
        events = chunks(reply.text)
        found = ["", "", "", ""]
        for e in events:
            for c in e["choices"]:
                found[c["index"]] += c["text"]
        usage = events[-1]["usage"]
    else:
        found = [c["text"] for c in reply.json()["choices"]]
        usage = reply.json()["usage"]
    assert found == alone
    assert usage["prompt_tokens"] == 2


def test_a_stream_ends_with_a_reason_and_what_was_applied(tenant: Tenant) -> None:
    fitted = tenant.ready("p")
    events = chunks(complete(tenant, model="fake@p", stream=True, max_tokens=4).text)
    assert {e["object"] for e in events} == {"text_completion"}
    assert [e["choices"][0]["finish_reason"] for e in events] == [None, None, None, "length"]
    assert events[-1]["alignez"]["sha256"] == fitted.sha256


def test_log_probabilities_have_the_older_form(tenant: Tenant) -> None:
    choice = complete(tenant, logprobs=2, max_tokens=4, seed=1).json()["choices"][0]
    shown = choice["logprobs"]
    assert "".join(shown["tokens"]) == choice["text"]
    assert shown["text_offset"] == [sum(len(t) for t in shown["tokens"][:i]) for i in range(4)]
    assert all(len(top) <= 2 for top in shown["top_logprobs"])
    streamed: dict[str, list[Any]] = {key: [] for key in shown}
    for e in chunks(complete(tenant, logprobs=2, max_tokens=4, seed=1, stream=True).text):
        for key, values in (e["choices"][0]["logprobs"] or {}).items():
            streamed[key] += values
    assert streamed == shown


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""), ("prompt", []), ("prompt", [""]), ("prompt", [[]]), ("prompt", [-1]), ("prompt", "a\x00"),
        ("prompt", 5), ("prompt", [1 << 40]), ("prompt", [1 << 21]), ("prompt", ["x"] * 65), ("prompt", [["x"]]),
        ("logprobs", 21), ("echo", True), ("suffix", "x"), ("best_of", 2),
    ],
)  # fmt: skip
def test_malformed_and_unsupported_requests_are_refused(tenant: Tenant, field: str, value: object) -> None:
    reply = complete(tenant, **{field: value})
    assert reply.status_code == 400
    assert field in str(reply.json()["error"])


def test_an_end_users_path_takes_their_profile(tenant: Tenant) -> None:
    fitted = tenant.ready("p")
    tenant.put("/v1/users/anna/profile", json={"profile": "p"})
    reply = tenant.post("/v1/users/anna/completions", json={"model": "fake", "prompt": "x"})
    assert reply.json()["alignez"]["sha256"] == fitted.sha256


def test_unknown_foreign_and_unready_profiles(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("p")
    tenant.pending("q")
    assert complete(tenant, model="fake@none").status_code == 404
    assert complete(stranger, model="fake@p").status_code == 404
    assert complete(tenant, model="fake@q").status_code == 409


def test_over_the_context_is_openais_error(tenant: Tenant) -> None:
    for reply in (complete(tenant, "word " * 600), complete(tenant, [5] * 600), complete(tenant, max_tokens=600)):
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "context_length_exceeded"
