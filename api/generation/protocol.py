"""OpenAI's wire shapes, as far as this service has a meaning for them.

Requests are parsed with pydantic. Replies are plain dictionaries (`run.py`), because a validated model per token would
cost more than the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.generation.parameters import DESCRIPTIVE, UNSUPPORTED, KnownFields, OffValues
from api.http.fields import MAX_BIGINT, MAX_ID, MAX_INTEGER, OptionalEndUser, Text, field_error, refuse_unknown
from profiles.spec import NAME_LIMIT

MAX_STOPS = 16
MAX_STOP_IDS = 128
MAX_MESSAGES = 2000
MAX_MODEL_NAME = 400

#: Strict: a string or a boolean is not a token.
TokenId = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
StopText = Annotated[Text, Field(min_length=1, max_length=256)]


class ProfileChoice(KnownFields):
    """The profile that an answer is personalised with; `alias` and `version` exclude each other."""

    name: Annotated[Text, Field(min_length=1, max_length=MAX_ID, description="the profile's name or id")]
    alias: Annotated[Text, Field(min_length=1, max_length=NAME_LIMIT)] | None = None
    version: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = None
    strength: Annotated[float, Field(ge=0, le=8, description="dose; the version's own when left out")] | None = None

    @model_validator(mode="after")
    def _one_pointer(self) -> Self:
        if self.alias is not None and self.version is not None:
            raise field_error("version", "give alias or version, not both")
        return self


class StreamOptions(KnownFields):
    """`include_usage`: one more chunk before the end, with the token counts."""

    unsupported: ClassVar[OffValues] = {"continuous_usage_stats": (None, False), "include_obfuscation": (None, False)}

    include_usage: bool = False


#: Where a sampling value comes from that a request does not name.
_MODEL_S_OWN = "the value of the model's generation_config.json"

#: Stands for the served base model, whatever its name, in `model` and before the '@'.
BASE = "base"


class SamplingFields(KnownFields):
    """Fields that chat and text completions share."""

    model_config = ConfigDict(protected_namespaces=())
    unsupported: ClassVar[OffValues] = UNSUPPORTED
    descriptive: ClassVar[frozenset[str]] = DESCRIPTIVE

    model: Annotated[
        Text,
        Field(
            min_length=1,
            max_length=MAX_MODEL_NAME,
            description="`base`, `base@profile`, `base@profile:alias` or `base@profile#version`; `base` is the served "
            "model's name, or just the word base",
            examples=["persona-nano", "persona-nano@cheerful"],
        ),
    ] = BASE
    profile: ProfileChoice | None = None
    temperature: Annotated[
        float, Field(ge=0, le=2, description=f"when left out, {_MODEL_S_OWN}, else 1; 0 is greedy")
    ] | (None) = None
    top_p: Annotated[float, Field(ge=0, le=1, description=f"when left out, {_MODEL_S_OWN}, else 1")] | None = None
    top_k: Annotated[
        int, Field(ge=-1, le=1_000_000, description=f"0 or −1: off; when left out, {_MODEL_S_OWN}, else off")
    ] | (None) = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    n: Annotated[int, Field(ge=1, le=128, description="choices; choice i samples with seed + i")] | None = None
    seed: Annotated[int, Field(ge=-MAX_BIGINT, le=MAX_BIGINT)] | None = None
    stop: Annotated[
        StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None,
        Field(description="strings that end the answer; a special token's text means that token"),
    ] = None
    stop_token_ids: Annotated[
        list[TokenId],
        Field(max_length=MAX_STOP_IDS, description="token ids, below the model's vocabulary size, that end the answer"),
    ] | (None) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[
        OptionalEndUser,
        Field(description="an end user, as in `/v1/users/{user}`; the answer takes their assigned profile"),
    ] = None
    ignore_eos: bool | None = None

    @classmethod
    def is_off(cls, name: str, values: Mapping[str, Any]) -> bool:
        """Tools that must not be called change nothing."""
        choice = {"tools": "tool_choice", "functions": "function_call"}.get(name)
        return (choice is not None and values.get(choice) == "none") or super().is_off(name, values)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were written."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """True if a stream ends with a chunk that holds the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    """One part of a message's content; only text has a meaning for these models."""

    type: Literal["text"]
    text: Text
    cache_control: Annotated[object, Field(description="no effect")] = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        """Of a part of another type, the type is the error."""
        if isinstance(values, dict) and values.get("type") == "text":
            refuse_unknown(values, cls.model_fields)
        return values


class ChatMessage(KnownFields):
    """One turn. An assistant's may have no content, as one that only called tools has."""

    unsupported: ClassVar[OffValues] = {
        "annotations": (None, []),
        "audio": (None,),
        "function_call": (None,),
        "reasoning": (None, ""),
        "reasoning_content": (None, ""),
        "refusal": (None, ""),
        "tool_call_id": (None,),
        "tool_calls": (None, []),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    name: Annotated[
        Text,
        Field(
            max_length=256, description="the participant's name; passed over, for chat templates have no place for it"
        ),
    ] | (None) = None

    @classmethod
    def is_off(cls, name: str, values: Mapping[str, Any]) -> bool:
        """A tool's message is refused for its role."""
        return (name == "tool_call_id" and values.get("role") == "tool") or super().is_off(name, values)

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise field_error("content", f"a {self.role} message needs a text, or a list of text parts")
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _logprobs_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "needs logprobs: true")
        return self

    @property
    def answer_tokens(self) -> int | None:
        """The asked-for length; the newer name wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report beside each token; None reports no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


def turns_of(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """The conversation as a `PromptFormat` takes it; "developer" is OpenAI's newer word for "system"."""
    return [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text}
        for message in messages
    ]


def last_question(messages: Sequence[ChatMessage]) -> str:
    """The last user message: what a sample-conditional edit is looked up with; empty where there is none."""
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000, fail_fast=True)]
PromptText = Annotated[Text, Field(min_length=1)]


class CompletionRequest(SamplingFields):
    """Body of `POST /v1/completions`."""

    prompt: PromptText | TokenIds | Annotated[list[PromptText | TokenIds], Field(min_length=1, max_length=128)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several prompts, as texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]
