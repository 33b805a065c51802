"""Body and reply of a comparison."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field, model_validator

from api.generation.parameters import DESCRIPTIVE, UNSUPPORTED, KnownFields, OffValues
from api.generation.protocol import MAX_MESSAGES, ChatMessage, ProfileChoice, StopText
from api.http.fields import MAX_BIGINT, QueryText, Text, field_error


class Compared(ProfileChoice):
    """One column: a profile, and what to call the column."""

    label: (
        Annotated[Text, Field(max_length=100, description="the column's name; the profile's when left out")] | None
    ) = None


class CompareRequest(KnownFields):
    """Body of `POST /v1/compare`."""

    unsupported: ClassVar[OffValues] = {
        **UNSUPPORTED,
        "ignore_eos": (None, False),
        "logprobs": (None, False),
        "n": (None, 1),
        "stop_token_ids": (None, []),
        "top_k": (None, 0, -1),
        "top_logprobs": (None, 0),
    }
    descriptive: ClassVar[frozenset[str]] = DESCRIPTIVE

    prompt: QueryText | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    profiles: Annotated[list[Compared], Field(min_length=1, max_length=32)]
    include_base: bool = True
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=MAX_BIGINT, description="of every column")] = 0
    stop: Annotated[list[StopText], Field(max_length=16)] | None = None
    stream: bool = False

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise field_error("prompt", "give prompt or messages, one of them")
        return self


class Column(BaseModel):
    """One answer of a comparison."""

    index: int
    name: str
    text: str
    finish_reason: str | None
    tokens: int
    prompt_tokens: int
    alignez: dict[str, Any]


class Comparison(BaseModel):
    """All answers, the base model's first."""

    id: str
    model: str
    seed: int
    prompt_tokens: int = Field(description="of the first column; a profile's prefix adds to its own column's")
    columns: list[Column]
