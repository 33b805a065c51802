"""The official `openai` client, unchanged, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import BaseModel

from alignez_core.engines.fake.engine import FakeEngine
from tests.api.conftest import AppMaker, Tenant, serving

HELLO: ChatCompletionUserMessageParam = {"role": "user", "content": "Hi"}


def alignez(answer: BaseModel) -> dict[str, Any]:
    """The field of an answer that is ours; the client keeps fields that it does not know."""
    assert answer.model_extra is not None
    return dict(answer.model_extra["alignez"])


@pytest.fixture
def own_engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(make_app: AppMaker, own_engine: FakeEngine) -> Iterator[str]:
    with serving(make_app(own_engine)) as (url, _):
        yield url


@pytest.fixture
def ai(url: str, tenant: Tenant) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=tenant.secret, max_retries=0, timeout=20) as client:
        yield client


def test_chat_whole_and_streamed(ai: OpenAI, tenant: Tenant) -> None:
    fitted = tenant.ready("p")
    whole = ai.chat.completions.create(model="fake@p", messages=[HELLO], seed=3)
    assert whole.choices[0].message.content
    assert alignez(whole)["sha256"] == fitted.sha256

    text, last, usage = "", None, None
    for chunk in ai.chat.completions.create(
        model="fake@p", messages=[HELLO], seed=3, stream=True, stream_options={"include_usage": True}
    ):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            last = chunk
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert last is not None
    assert alignez(last)["profile"] == "p"
    assert usage == whole.usage


def test_the_clients_own_stream_helper_puts_the_answer_together(ai: OpenAI) -> None:
    with ai.chat.completions.stream(model="fake", messages=[HELLO], seed=1, n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.finish_reason for choice in final.choices] == ["stop", "stop"]
    assert all(choice.message.content for choice in final.choices)


def test_our_own_fields_go_through_extra_body(ai: OpenAI, own_engine: FakeEngine, tenant: Tenant) -> None:
    tenant.ready("p", fit={"method": "distill"})
    ai.chat.completions.create(
        model="fake",
        messages=[HELLO],
        max_tokens=12,
        extra_body={"profile": {"name": "p", "strength": 0.5}, "top_k": 5, "ignore_eos": True},
    )
    sent = own_engine.requests[-1]
    assert (sent.top_k, sent.ignore_eos, sent.max_tokens) == (5, True, 12)
    assert sent.edit is not None


def test_log_probabilities(ai: OpenAI) -> None:
    choice = ai.chat.completions.create(
        model="fake", messages=[HELLO], logprobs=True, top_logprobs=3, max_tokens=4
    ).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 4
    assert len(choice.logprobs.content[0].top_logprobs) == 3


def test_text_completions(ai: OpenAI) -> None:
    whole = ai.completions.create(model="fake", prompt=["One", "Two"], seed=2, max_tokens=5)
    assert [choice.index for choice in whole.choices] == [0, 1]
    parts = ["", ""]
    for chunk in ai.completions.create(model="fake", prompt=["One", "Two"], seed=2, max_tokens=5, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.text
    assert parts == [choice.text for choice in whole.choices]


def test_models(ai: OpenAI, tenant: Tenant) -> None:
    tenant.ready("p")
    listed = list(ai.models.list())
    assert [model.id for model in listed] == ["fake", "fake@p"]
    assert [ai.models.retrieve(model.id) for model in listed] == listed


def test_an_end_users_base_url_is_all_that_a_client_needs(url: str, tenant: Tenant) -> None:
    fitted = tenant.ready("p")
    tenant.put("/v1/users/anna/profile", json={"profile": "p"})
    with OpenAI(base_url=f"{url}/v1/users/anna", api_key=tenant.secret, max_retries=0) as client:
        assert next(model.id for model in client.models.list()) == "fake"
        assert client.models.retrieve("fake@p").id == "fake@p"
        chat = client.chat.completions.create(model="fake", messages=[HELLO])
        assert alignez(chat)["sha256"] == fitted.sha256
        assert alignez(client.completions.create(model="fake", prompt="x"))["profile"] == "p"


def test_errors_are_the_clients_own_exceptions(ai: OpenAI, url: str, tenant: Tenant) -> None:
    tenant.pending("q")
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="none", messages=[HELLO])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ai.chat.completions.create(model="fake", messages=[HELLO], max_tokens=9999)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        ai.chat.completions.create(
            model="fake", messages=[HELLO], tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert tools.value.param == "tools"
    with pytest.raises(openai.ConflictError):
        ai.chat.completions.create(model="fake@q", messages=[HELLO])
    with (
        OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_an_error_in_mid_stream_is_raised_where_the_client_reads(make_app: AppMaker, tenant: Tenant) -> None:
    failing = FakeEngine(error=RuntimeError("boom"), fail_after=3)
    with (
        serving(make_app(failing)) as (url, _),
        OpenAI(base_url=f"{url}/v1", api_key=tenant.secret, max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="fake", messages=[HELLO], stream=True)
        with pytest.raises(openai.APIError):
            list(stream)


def test_the_async_client_streams_many_answers_at_once(url: str, tenant: Tenant) -> None:
    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": f"query {i}"}], temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=tenant.secret, max_retries=0) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(16)))

    answers = asyncio.run(all_of_them())
    assert len(set(answers)) == 16


def test_what_the_client_has_read_can_be_sent_back(ai: OpenAI) -> None:
    answer = ai.chat.completions.create(model="fake", messages=[HELLO]).choices[0].message
    # The client's types do not allow what its users do and its serialiser takes.
    ai.chat.completions.create(model="fake", messages=[HELLO, answer, HELLO])  # type: ignore[list-item]
    ai.chat.completions.create(model="fake", messages=[HELLO, answer.model_dump(), HELLO])  # type: ignore[list-item]


def test_a_refused_field_is_the_clients_bad_request(ai: OpenAI) -> None:
    for extra, code in (({"min_p": 0.1}, "unsupported_parameter"), ({"max_tokns": 1}, "unknown_parameter")):
        with pytest.raises(openai.BadRequestError) as refused:
            ai.chat.completions.create(model="fake", messages=[HELLO], extra_body=extra)
        assert (refused.value.code, refused.value.param) == (code, next(iter(extra)))
    ai.chat.completions.create(
        model="fake", messages=[HELLO], store=True, metadata={"a": "b"}, parallel_tool_calls=False, tool_choice="none",
        service_tier="auto", safety_identifier="u", prompt_cache_key="k", frequency_penalty=0, presence_penalty=0,
    )  # fmt: skip
