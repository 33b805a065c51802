"""Versions that are served by a text before the conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.prompts import ChatFormat, Message, Prefix
from profiles.uow import SessionFactory
from tests.api.conftest import AppMaker, Tenant, new_tenant
from tests.api.events import BARE, chunks, parse

OWN = "You work for a bookshop."
ASKED = "What is the sea?"


def template(messages: Sequence[Message]) -> str:
    return "".join(f"<{m['role']}> {m['content']} </> " for m in messages) + "<assistant>"


@pytest.fixture
def chat_tenant(make_app: AppMaker, sessions: SessionFactory) -> Iterator[Tenant]:
    """A caller of a model with a chat template."""
    engine = FakeEngine(prompt_format=ChatFormat(template))
    with TestClient(make_app(engine)) as client:
        yield new_tenant(client, sessions, engine)


def prompt(tenant: Tenant) -> list[int]:
    found = tenant.engine.requests[-1].prompt
    assert not isinstance(found, str)
    return list(found)


def ready(tenant: Tenant, method: str = "prompt") -> Prefix:
    fitted = tenant.ready("p", fit={"method": method})
    assert fitted.prefix is not None
    assert fitted.edits == ()
    return fitted.prefix


@pytest.mark.parametrize("method", ["prompt", "urial"])
@pytest.mark.parametrize("system", [None, OWN])
def test_a_prefix_stands_before_the_callers_own_system_message(
    chat_tenant: Tenant, method: str, system: str | None
) -> None:
    tenant = chat_tenant
    prefix = ready(tenant, method)
    turns = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": ASKED}]
    reply = tenant.post("/v1/chat/completions", json={"model": "fake@p", "messages": turns})

    expected = tenant.engine.tokenize(template(prefix.apply(turns)))
    bare = tenant.engine.tokenize(template(turns))
    assert prompt(tenant) == expected
    assert tenant.engine.requests[-1].edit is None
    body = reply.json()
    assert body["usage"]["prompt_tokens"] == len(expected)
    assert body["alignez"]["prefix_tokens"] == len(expected) - len(bare) > 0
    assert body["alignez"] == {**BARE, **{k: body["alignez"][k] for k in ("profile", "version", "sha256")},
                               "prefix_tokens": len(expected) - len(bare)}  # fmt: skip


@pytest.mark.parametrize(("strength", "status"), [(0, 200), (1, 200), (0.5, 400), (2, 400)])
def test_a_prefix_has_no_dose_but_on_and_off(chat_tenant: Tenant, strength: float, status: int) -> None:
    ready(chat_tenant)
    reply = chat_tenant.chat(ASKED, profile={"name": "p", "strength": strength})
    assert reply.status_code == status
    if status == 400:
        assert reply.json()["error"]["param"] == "profile.strength"


def test_streams_count_it_too(chat_tenant: Tenant) -> None:
    ready(chat_tenant)
    whole = chat_tenant.chat(ASKED, model="fake@p", max_tokens=3).json()
    reply = chat_tenant.chat(ASKED, model="fake@p", max_tokens=3, stream=True, stream_options={"include_usage": True})
    last = chunks(reply.text)[-1]
    assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert last["alignez"] == whole["alignez"]


def test_each_column_of_a_comparison_has_its_own_prompt(chat_tenant: Tenant) -> None:
    ready(chat_tenant)
    chat_tenant.ready("q", fit={"method": "distill"})
    body = {"prompt": ASKED, "profiles": [{"name": "p"}, {"name": "q"}], "max_tokens": 3}
    columns = chat_tenant.post("/v1/compare", json=body).json()["columns"]
    alone = chat_tenant.chat(ASKED, model="fake@p", max_tokens=3).json()
    base, prefixed, edited = (column["prompt_tokens"] for column in columns)
    assert base == edited < prefixed == alone["usage"]["prompt_tokens"]
    assert columns[1]["alignez"] == alone["alignez"]
    events = parse(chat_tenant.post("/v1/compare", json={**body, "stream": True}).text)
    ended = {data["index"]: data for _, kind, data in events if kind == "column"}
    assert [ended[i]["prompt_tokens"] for i in range(3)] == [base, prefixed, edited]


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_text_completion_of_a_plain_model_follows_the_prefix(tenant: Tenant, as_ids: bool) -> None:
    prefix = ready(tenant)
    asked: Any = tenant.engine.tokenize("Once upon") if as_ids else "Once upon"
    reply = tenant.post("/v1/completions", json={"model": "fake@p", "prompt": asked, "max_tokens": 2})
    opening = f"{prefix.system}\n"
    expected = [*tenant.engine.tokenize(opening), *asked] if as_ids else tenant.engine.tokenize(f"{opening}{asked}")
    assert prompt(tenant) == expected
    assert reply.json()["usage"]["prompt_tokens"] == len(expected)
    assert reply.json()["alignez"]["prefix_tokens"] == len(expected) - 2


def test_a_text_completion_of_a_chat_model_has_no_place_for_a_prefix(chat_tenant: Tenant) -> None:
    ready(chat_tenant)
    reply = chat_tenant.post("/v1/completions", json={"model": "fake@p", "prompt": "Once"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "prefix_needs_chat")
    assert "/v1/chat/completions" in reply.json()["error"]["message"]


def test_a_prefix_and_a_prompt_over_the_context_are_counted_together(chat_tenant: Tenant) -> None:
    tenant = chat_tenant
    ready(tenant)
    tokens = tenant.chat(ASKED, model="fake@p", max_tokens=1).json()["alignez"]["prefix_tokens"]
    bare = tenant.chat(ASKED, max_tokens=1).json()["usage"]["prompt_tokens"]
    room = tenant.engine.info.context_length - bare
    assert tenant.chat(ASKED, max_tokens=room).status_code == 200
    for content, asked in ((ASKED, room), ("word " * 600, 1)):
        reply = tenant.chat(content, model="fake@p", max_tokens=asked)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["details"]["prefix_tokens"] == tokens
        assert f"{tokens} of them the profile's prefix" in error["message"]
    assert tenant.chat(ASKED, model="fake@p", max_tokens=room - tokens).status_code == 200


def test_the_bare_model_and_edits_know_of_no_prefix(chat_tenant: Tenant) -> None:
    chat_tenant.ready("q", fit={"method": "distill"})
    for model in ("fake", "fake@q"):
        assert chat_tenant.chat(ASKED, model=model).json()["alignez"]["prefix_tokens"] is None
