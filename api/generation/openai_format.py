"""Schemas of OpenAI's replies, for the OpenAPI file only: replies are built as plain dictionaries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Applied(BaseModel):
    """The personalisation of an answer. All fields are null for the bare base model; if an end user's profile has no
    default version, `profile` and `reason` are set."""

    profile: str | None
    version: int | None
    sha256: str | None
    neighbors: list[str] | None
    edit_ratio: float | None
    prefix_tokens: int | None = Field(description="tokens that the profile's prefix adds to the prompt")
    reason: Literal["no_default_version"] | None = Field(
        description="reason why the bare model answered an end user who has a profile"
    )


class UsageShape(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: str | None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """A complete answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageShape
    alignez: Applied


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    """A complete continuation."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageShape
    alignez: Applied


_EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": ChatCompletion, "description": "The answer, or its events with `stream: true`", "content": _EVENTS}
}
COMPLETION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": TextCompletion, "description": "The text, or its events with `stream: true`", "content": _EVENTS}
}
