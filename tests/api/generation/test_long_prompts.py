"""A prompt that is over the context for certain is refused before anything is made of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from torch import Tensor

from alignez_core.engines.base import Prompt, Span
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.prompts import ChatFormat, Message
from api.generation.prompts import CHARACTERS_PER_TOKEN, Prompts
from api.generation.protocol import ChatMessage
from profiles.uow import SessionFactory
from tests.api.conftest import AppMaker, Tenant, new_tenant

CONTEXT = 512
LIMIT = CONTEXT * CHARACTERS_PER_TOKEN


class Watched(FakeEngine):
    """Counts what is done with prompts."""

    def __init__(self) -> None:
        super().__init__(context_length=CONTEXT, prompt_format=ChatFormat(self._template))
        self.read = 0

    def _template(self, messages: Sequence[Message]) -> str:
        self.read += 1
        return "\n".join(message["content"] for message in messages)

    def tokenize(self, prompt: Prompt) -> list[int]:
        self.read += 1
        return super().tokenize(prompt)

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        self.read += 1
        return super().represent(texts, positions)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def own_tenant(make_app: AppMaker, sessions: SessionFactory, watched: Watched) -> Iterator[Tenant]:
    with TestClient(make_app(watched)) as client:
        yield new_tenant(client, sessions, watched)


def bodies(text: str) -> list[tuple[str, dict[str, Any], str]]:
    """Paths, bodies with this prompt, and the field that holds it."""
    user = {"role": "user", "content": text}
    chat = {"model": "fake@p", "messages": [user]}
    parts = [{"type": "text", "text": text[: len(text) // 2]}, {"type": "text", "text": text[len(text) // 2 :]}]
    return [
        ("/v1/chat/completions", chat, "messages"),
        ("/v1/chat/completions", {**chat, "stream": True}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]}, "messages"),
        ("/v1/users/anna/chat/completions", {"messages": [user]}, "messages"),
        ("/v1/completions", {"model": "fake@p", "prompt": text}, "prompt"),
        ("/v1/completions", {"prompt": ["x", text]}, "prompt"),
        ("/v1/users/anna/completions", {"prompt": text, "stream": True}, "prompt"),
        ("/v1/compare", {"messages": [user], "profiles": [{"name": "p"}]}, "messages"),
        ("/v1/compare", {"messages": [user], "profiles": [{"name": "p"}], "stream": True}, "messages"),
    ]


def test_nothing_is_tokenised_of_a_prompt_that_cannot_fit(own_tenant: Tenant, watched: Watched) -> None:
    own_tenant.ready("p")
    own_tenant.put("/v1/users/anna/profile", json={"profile": "p"})
    watched.read = 0
    for path, body, field in bodies("x" * (LIMIT + 1)):
        reply = own_tenant.post(path, json=body)
        assert reply.status_code == 400, (path, reply.text)
        error = reply.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["details"]["field"] == field
        assert f"{LIMIT + 1} characters, over the limit of {LIMIT}" in error["message"]
        assert watched.read == 0, path
    for path, body, _ in bodies("x" * LIMIT):
        assert own_tenant.post(path, json={**body, "max_tokens": 1}).status_code == 200, path


def test_many_messages_count_together(own_tenant: Tenant, watched: Watched) -> None:
    half = {"role": "user", "content": "x" * (LIMIT // 2 + 1)}
    reply = own_tenant.post("/v1/chat/completions", json={"messages": [half, half]})
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert watched.read == 0


def test_long_texts_are_tokenised_one_at_a_time_beside_the_event_loop() -> None:
    loop_thread = threading.get_ident()
    busy = threading.Lock()
    seen: list[tuple[int, bool]] = []

    class Slow(FakeEngine):
        def tokenize(self, prompt: Prompt) -> list[int]:
            alone = busy.acquire(blocking=False)
            seen.append((threading.get_ident(), alone))
            ids = super().tokenize(prompt)
            if alone:
                busy.release()
            return ids

    async def read() -> None:
        prompts = Prompts(Slow(context_length=4096))
        messages = [ChatMessage(role="user", content="word " * 4000)]
        await asyncio.gather(
            *(prompts.chat(uuid4(), messages) for _ in range(4)),
            *(prompts.text(uuid4(), "a " * 9000) for _ in range(4)),
        )

    asyncio.run(read())
    assert len(seen) == 8
    assert all(thread != loop_thread and alone for thread, alone in seen)


def test_tenants_take_turns_at_the_one_thread() -> None:
    order: list[str] = []

    class Noting(FakeEngine):
        def tokenize(self, prompt: Prompt) -> list[int]:
            order.append(str(prompt)[:1])
            return super().tokenize(prompt)

    async def read() -> None:
        prompts, many, few = Prompts(Noting(context_length=4096)), uuid4(), uuid4()
        texts = [(many, "m " * 9000)] * 20 + [(few, "f " * 9000)] * 2
        await asyncio.gather(*(prompts.text(tenant, text) for tenant, text in texts))

    asyncio.run(read())
    assert "".join(order) == "mfmf" + 18 * "m"
