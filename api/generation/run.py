"""Runs a parsed request: sends it to the engine, and answers with one JSON reply or a stream of events.

This module depends neither on the kind of engine nor on the storage of profiles: the edit is an input.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from opentelemetry.trace import NoOpTracer, Span, Tracer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.generation.answers import Answer, Timing, usage, usage_by_profile
from api.generation.blame import LENGTH, blaming
from api.generation.personalise import Personalisation
from api.generation.prompts import Prompts
from api.generation.protocol import SamplingFields
from api.generation.streams import batches
from api.http.errors import ApiError, openai_body, problem_of
from api.http.pace import Pace
from api.http.sse import DONE, EventPattern, EventStream, event, join, watching
from api.metrics import Metrics
from api.usage import UsageMeter

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine, GenerationRequest, StreamChunk, TokenStream

_SEED_MASK = 2**63 - 1
COMPLETION_TOKENS = 16  #: OpenAI's default length of a text completion


@dataclass(frozen=True)
class Served:
    """The process-wide objects that generation needs."""

    engine: Engine
    prompts: Prompts
    metrics: Metrics
    pace: Pace
    usage: UsageMeter
    default_max_tokens: int
    #: Seconds without a block after which a stream sends a comment.
    heartbeat_s: float
    tracer: Tracer = field(default_factory=NoOpTracer)
    #: Tokens that the engine can hold for all requests; it bounds answers whose length the request leaves open.
    max_cache_tokens: int | None = None


@dataclass(frozen=True)
class Shape:
    """Names in one kind of reply: chat or text completion."""

    chat: bool
    id_prefix: str
    reply: str
    chunk: str


CHAT = Shape(True, "chatcmpl-", "chat.completion", "chat.completion.chunk")
TEXT = Shape(False, "cmpl-", "text_completion", "text_completion")


def engine_requests(
    served: Served,
    body: SamplingFields,
    prompt: list[int],
    asked_tokens: int | None,
    alternatives: int | None,
    personal: Personalisation,
    *,
    chat: bool,
) -> list[GenerationRequest]:
    """One request to the engine per choice; choice i samples with seed + i.

    Sampling parameters that the request omits are the model's own (`EngineInfo.sampling_defaults`).

    Raises: ContextTooLong: the prompt and the requested tokens exceed the context. ApiError: a stop token is not in
        the vocabulary.
    """
    from alignez_core.engines.base import GenerationRequest
    from alignez_core.errors import ContextTooLong

    info = served.engine.info
    default = info.sampling_defaults
    stop_ids = _checked_stop_ids(body.stop_token_ids or [], info.vocab_size)
    room = info.context_length - len(prompt)
    if asked_tokens is None:
        most = room if served.max_cache_tokens is None else min(room, served.max_cache_tokens - len(prompt))
        asked_tokens = max(1, min(most, served.default_max_tokens if chat else COMPLETION_TOKENS))
    if asked_tokens > room:
        raise ContextTooLong(len(prompt), asked_tokens, info.context_length, personal.prefix_tokens or 0)
    stops = body.stops
    if chat and not body.ignore_eos:
        stops += served.engine.prompt_format.stop
    choices = body.n or 1
    return [
        GenerationRequest(
            prompt=prompt,
            max_tokens=asked_tokens,
            temperature=default.temperature if body.temperature is None else body.temperature,
            # OpenAI allows 0, which keeps one token.
            top_p=default.top_p if body.top_p is None else max(body.top_p, 1e-6),
            top_k=default.top_k if body.top_k is None else max(body.top_k, 0),
            # Without a seed answers are random. With one, choices differ from each other and are reproducible.
            seed=None if body.seed is None else (body.seed + choice) & _SEED_MASK,
            stop=stops,
            stop_token_ids=stop_ids,
            ignore_eos=bool(body.ignore_eos),
            logprobs=alternatives,
            edit=personal.plan,
        )
        for choice in range(choices)
    ]


def _checked_stop_ids(ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    for token in ids:
        if token >= vocab_size:
            raise ApiError(
                400, "invalid_stop_token_ids", f"stop_token_ids: token {token} is not below {vocab_size}, the size of "
                "the model's vocabulary", param="stop_token_ids",
            )  # fmt: skip
    return tuple(ids)


#: Requests to the engine, and the personalisation of each (one object for all, except in comparisons).
Prepared = tuple[list["GenerationRequest"], list[Personalisation]]


@dataclass
class Generation:
    """One request's answers while the engine makes them.

    Args:
        model: the model name in the reply.
        prepare: looks up the personalisation and makes the engine's requests; called once.
        tenant_id: for token counts and for fair scheduling between tenants.
        started: time of the request's arrival, by `time.perf_counter`.
        prompt_field: the request's field that errors about the prompt's length name.
        prompts: number of prompts, each with the same number of choices.
    """

    served: Served
    shape: Shape
    model: str
    prepare: Callable[[], Awaitable[Prepared]]
    tenant_id: UUID
    started: float
    prompt_field: str
    prompts: int = 1

    def __post_init__(self) -> None:
        self.id = f"{self.shape.id_prefix}{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.timing = Timing(self.served.metrics, self.started)
        self.requests: list[GenerationRequest] = []
        self.personal: list[Personalisation] = []
        self.answers: list[Answer] = []
        self.streams: list[TokenStream] = []
        self._closed = False

    async def open(self) -> None:
        """Prepares the requests and submits them to the engine, all or none.

        Raises: what `prepare` raises; ContextTooLong, RequestTooLarge, EngineOverloaded, ModelMismatch, EngineClosed.
        """
        with blaming(self.prompt_field, LENGTH):
            requests, self.personal = await self.prepare()
            self.requests = [replace(each, group=str(self.tenant_id)) for each in requests]
            self.answers = [Answer(len(each.prompt)) for each in self.requests]
            self._start()
        if self._closed:  # the client disconnected meanwhile
            self.close()

    def _start(self) -> None:
        span = self._span()
        try:
            for each in self.requests:
                self.streams.append(self.served.engine.stream(each))
        except BaseException as error:
            self.close()
            span.record_exception(error)
            span.end()
            raise
        self.timing.begin(span)
        for personal in self.personal:
            self.served.metrics.edits.labels(personal.kind).inc()

    def _span(self) -> Span:
        """The trace span from submission to the last token, with OpenTelemetry's gen_ai attributes."""
        operation = "chat" if self.shape.chat else "text_completion"
        span = self.served.tracer.start_span(f"{operation} {self.served.engine.info.name}")
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.operation.name": operation,
                    "gen_ai.request.model": self.model,
                    "gen_ai.request.max_tokens": self.requests[0].max_tokens,
                    "alignez.rows": len(self.requests),
                    "alignez.edits": [personal.kind for personal in self.personal],
                }
            )
        return span

    def close(self) -> None:
        """Stops every answer within one step, also those that have not started. Idempotent."""
        self._closed = True
        for stream in self.streams:
            stream.close()

    async def respond(self, request: Request, *, stream: bool, include_usage: bool) -> Response:
        """The complete reply, or a response that streams it."""
        if stream:
            request_id = request.state.request_id
            return EventStream(
                self.events(include_usage),
                on_gone=self.close,
                on_error=lambda error: event(openai_body(problem_of(error), request_id)),
                heartbeat_s=self.served.heartbeat_s,
            )
        async with watching(request.receive, self.close):
            return JSONResponse(await self.collect())

    async def collect(self) -> dict[str, Any]:
        """The reply as one object, once every answer has ended. Raises: as `open`."""
        await self.open()
        try:
            for stream, answer in zip(self.streams, self.answers, strict=True):
                async for chunk in stream:
                    self.timing.token()
                    self.add(answer, chunk)
                    answer.parts.append(chunk.text)
        finally:
            self.end()
        return {
            "id": self.id,
            "object": self.shape.reply,
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(i) for i in range(len(self.requests))],
            "usage": usage(self.answers, self.prompts),
            **self._alignez(0),
        }

    def add(self, answer: Answer, chunk: StreamChunk) -> None:
        """Adds a chunk to an answer, and records its time in the queue."""
        answer.add(chunk)
        if chunk.queued_s is not None:
            self.timing.queued(chunk.queued_s)

    async def events(self, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Blocks of server-sent events up to `[DONE]`; the first one is empty, once the engine has the request.

        Raises: as `open`, before the first block.
        """
        await self.open()
        envelope = {"id": self.id, "object": self.shape.chunk, "created": self.created, "model": self.model}
        patterns = [EventPattern(envelope, i, chat=self.shape.chat) for i in range(len(self.requests))]
        opened = [not self.shape.chat] * len(patterns)
        try:
            yield b""
            async for batch in batches(self.streams, self.served.pace):
                self.timing.token()
                out: list[str] = []
                for index, chunk in batch:
                    if not opened[index]:
                        opened[index] = True
                        out.append(patterns[index].role())
                    self._encode(patterns[index], index, chunk, out)
                if out:
                    yield join(out)
            if include_usage:
                last = {**envelope, "choices": [], "usage": usage(self.answers, self.prompts), **self._alignez(0)}
                yield event(last) + DONE
            else:
                yield DONE
        finally:
            self.end()

    def _encode(self, pattern: EventPattern, index: int, chunk: StreamChunk, out: list[str]) -> None:
        """Appends the events of one chunk; one without text has none, and its log-probabilities are sent later."""
        answer = self.answers[index]
        self.add(answer, chunk)
        if chunk.finish_reason is None and not answer.logprobs:
            if chunk.text:
                out.append(pattern.text(chunk.text))
        elif chunk.finish_reason is not None:
            # The last chunk of a choice has an empty delta in OpenAI's protocol, so remaining text is sent before it.
            logprobs = answer.take_logprobs(self.shape.chat)
            if self.shape.chat and (chunk.text or logprobs):
                out.append(pattern.full(chunk.text, None, logprobs))
                out.append(pattern.full("", answer.finish_reason, None, self._alignez(index)))
            else:
                out.append(pattern.full(chunk.text, answer.finish_reason, logprobs, self._alignez(index)))
        elif chunk.text:
            out.append(pattern.full(chunk.text, None, answer.take_logprobs(self.shape.chat)))

    def end(self) -> None:
        """Ends the response: stops running answers and records usage, once."""
        self.close()
        if self.timing.end(self.answers):
            profiles = [personal.profile_id for personal in self.personal]
            for profile, (read, made) in usage_by_profile(self.answers, profiles, self.prompts).items():
                self.served.usage.count(self.tenant_id, profile, read, made)

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self.answers[index]
        text = "".join(answer.parts)
        body: dict[str, Any] = {"index": index}
        if self.shape.chat:
            body["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            body["text"] = text
        body["logprobs"] = answer.take_logprobs(self.shape.chat)
        body["finish_reason"] = answer.finish_reason
        return body

    def _alignez(self, index: int) -> dict[str, Any]:
        return {"alignez": self.personal[index].report()}
