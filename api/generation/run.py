"""From a parsed request to an answer: rows for the engine, then one JSON reply or a stream of events.

Nothing here knows which engine runs or where profiles are stored; a request's edit arrives ready made.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from opentelemetry.trace import NoOpTracer, Span, Tracer
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.generation.answers import Answer, Timing, usage, usage_by_profile
from api.generation.personalise import BARE, Personalisation
from api.generation.protocol import ChatRequest, SamplingFields
from api.generation.streams import batches
from api.http.errors import ApiError, openai_body, problem_of
from api.http.pace import Pace
from api.http.sse import DONE, EventPattern, EventStream, event, join, watching
from api.metrics import Metrics
from api.usage import UsageMeter

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine, GenerationRequest, StreamChunk, TokenStream
    from alignez_core.prompts import Message

_SEED_MASK = 2**63 - 1
#: Beyond this many characters tokenising could hold the event loop up noticeably.
_TOKENISE_INLINE = 8000
COMPLETION_TOKENS = 16  #: OpenAI's default length of a text completion


@dataclass(frozen=True)
class Served:
    """What serving needs of the process."""

    engine: Engine
    metrics: Metrics
    pace: Pace
    usage: UsageMeter
    default_max_tokens: int
    tracer: Tracer = field(default_factory=NoOpTracer)
    #: What the engine may hold for all rows; an answer of open length is not asked to be longer.
    max_cache_tokens: int | None = None


@dataclass(frozen=True)
class Shape:
    """How a kind of reply is named."""

    chat: bool
    id_prefix: str
    reply: str
    chunk: str


CHAT = Shape(True, "chatcmpl-", "chat.completion", "chat.completion.chunk")
TEXT = Shape(False, "cmpl-", "text_completion", "text_completion")


async def render_chat(
    engine: Engine, body: ChatRequest, personal: Personalisation = BARE
) -> tuple[list[int], Personalisation]:
    """Token ids of the conversation, answer cue included, after the profile's prefix.

    Returns: the ids, and the personalisation that knows how many of them its prefix costs.
    Raises: ApiError: the model's chat template refuses the order of the roles.
    """
    turns = body.turns()
    bare = await _rendered(engine, turns)
    if personal.prefix is None:
        return bare, personal
    ids = await _rendered(engine, personal.prefix.apply(turns))
    return ids, replace(personal, prefix_tokens=max(0, len(ids) - len(bare)))


async def _rendered(engine: Engine, turns: Sequence[Message]) -> list[int]:
    if sum(len(turn["content"]) for turn in turns) < _TOKENISE_INLINE:
        return _render(engine, turns)
    return await run_in_threadpool(_render, engine, turns)


def _render(engine: Engine, turns: Sequence[Message]) -> list[int]:
    try:
        text = engine.prompt_format.render(turns)
    except Exception as error:  # templates are the model's own code and raise what they like
        raise ApiError(
            400, "invalid_messages", f"the model's chat template refuses these messages: {str(error)[:200]}",
            param="messages",
        ) from error  # fmt: skip
    return engine.tokenize(text)


async def prefixed(
    engine: Engine, prompt: str | list[int], ids: list[int], personal: Personalisation
) -> tuple[list[int], Personalisation]:
    """A text completion's prompt after the profile's prefix, as `render_chat` has a conversation's.

    Raises: ApiError: a model that takes prefixes in chat turns only.
    """
    if personal.prefix is None:
        return ids, personal
    form = engine.prompt_format
    if form.name == "chat":
        raise ApiError(
            400, "prefix_needs_chat", f"profile {personal.profile!r} puts a text before conversations, which this "
            "model reads in chat turns only; use /v1/chat/completions", param="model",
        )  # fmt: skip
    opening = form.render(personal.prefix.apply([{"role": "user", "content": ""}])).removesuffix(form.wrap(""))
    if isinstance(prompt, str):
        whole = await tokenise(engine, opening + prompt)
    else:
        whole = [*await tokenise(engine, opening), *ids]
    return whole, replace(personal, prefix_tokens=max(0, len(whole) - len(ids)))


async def tokenise(engine: Engine, prompt: str | list[int]) -> list[int]:
    """Token ids of a text completion's prompt; ids are checked against the vocabulary.

    Raises: ApiError: an id outside it.
    """
    if isinstance(prompt, str):
        if len(prompt) < _TOKENISE_INLINE:
            return engine.tokenize(prompt)
        return await run_in_threadpool(engine.tokenize, prompt)
    size = engine.info.vocab_size
    if max(prompt) >= size:
        raise ApiError(400, "invalid_prompt", f"token {max(prompt)} is not below {size}", param="prompt")
    return prompt


def rows(
    served: Served,
    body: SamplingFields,
    prompt: list[int],
    asked_tokens: int | None,
    alternatives: int | None,
    personal: Personalisation,
    *,
    chat: bool,
) -> list[GenerationRequest]:
    """One engine row per choice; choice i samples with seed + i.

    What the request does not say of sampling is the model's own (`EngineInfo.sampling_defaults`).

    Raises: ContextTooLong: the prompt, with the tokens asked for, is over the context. ApiError: a stop token that the
        vocabulary does not hold.
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
            # A single unseeded row stays unpredictable; seeded choices differ from each other and repeat.
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


@dataclass
class Generation:
    """The rows of one request in the engine.

    Args:
        personal: per row, whose behaviour it takes on (one object for all, except in comparisons).
        tenant_id: on whose account the tokens go, and with whom the rows take turns in the engine's queue.
        columns: per row, further constant fields of its choice.
        prompts: how many prompts the rows continue, in groups of equal length.
    """

    served: Served
    shape: Shape
    model: str
    rows: list[GenerationRequest]
    personal: list[Personalisation]
    tenant_id: UUID
    started: float
    columns: list[dict[str, Any]] | None = None
    prompts: int = 1

    def __post_init__(self) -> None:
        self.id = f"{self.shape.id_prefix}{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.rows = [replace(row, group=str(self.tenant_id)) for row in self.rows]
        self.answers = [Answer(len(row.prompt)) for row in self.rows]
        self.timing = Timing(self.served.metrics, self.started)
        self.streams: list[TokenStream] = []

    def start(self) -> None:
        """Hands the rows to the engine, all or none.

        Raises: ContextTooLong, RequestTooLarge, EngineOverloaded, ModelMismatch, EngineClosed.
        """
        span = self._span()
        try:
            for row in self.rows:
                self.streams.append(self.served.engine.stream(row))
        except BaseException as error:
            self.close()
            span.record_exception(error)
            span.end()
            raise
        self.timing.begin(span)
        for personal in self.personal:
            self.served.metrics.edits.labels(personal.kind).inc()

    def _span(self) -> Span:
        """The engine's part of the request, from the hand-over to the last token; names are OpenTelemetry's gen_ai."""
        operation = "chat" if self.shape.chat else "text_completion"
        span = self.served.tracer.start_span(f"{operation} {self.served.engine.info.name}")
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.operation.name": operation,
                    "gen_ai.request.model": self.model,
                    "gen_ai.request.max_tokens": self.rows[0].max_tokens,
                    "alignez.rows": len(self.rows),
                    "alignez.edits": [personal.kind for personal in self.personal],
                }
            )
        return span

    def close(self) -> None:
        """Stops every row within one step. Safe to call twice."""
        for stream in self.streams:
            stream.close()

    def abandon(self) -> None:
        """`close`, for a response that may never have been read at all."""
        self.close()
        self._end()

    async def respond(self, request: Request, *, stream: bool, include_usage: bool) -> Response:
        """The whole reply, or the response that will stream it. The engine has started when this returns."""
        self.start()
        if stream:
            request_id = request.state.request_id
            return EventStream(
                self.events(include_usage),
                on_gone=self.abandon,
                on_error=lambda error: event(openai_body(problem_of(error), request_id)),
            )
        async with watching(request.receive, self.close):
            return JSONResponse(await self.collect())

    async def collect(self) -> dict[str, Any]:
        """The reply as one object, when every row has ended."""
        try:
            for stream, answer in zip(self.streams, self.answers, strict=True):
                async for chunk in stream:
                    self.timing.token()
                    self.add(answer, chunk)
                    answer.parts.append(chunk.text)
        finally:
            self.close()
            self._end()
        return {
            "id": self.id,
            "object": self.shape.reply,
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(i) for i in range(len(self.rows))],
            "usage": usage(self.answers, self.prompts),
            **self._alignez(0),
        }

    def add(self, answer: Answer, chunk: StreamChunk) -> None:
        """Counts a chunk in."""
        answer.add(chunk)
        if chunk.queued_s is not None:
            self.timing.queued(chunk.queued_s)

    async def events(self, include_usage: bool) -> AsyncIterator[bytes]:
        """Blocks of server-sent events, ending with `[DONE]`."""
        envelope = {"id": self.id, "object": self.shape.chunk, "created": self.created, "model": self.model}
        columns = self.columns or [{} for _ in self.rows]
        patterns = [EventPattern(envelope, i, chat=self.shape.chat, extra=column) for i, column in enumerate(columns)]
        opened = [not self.shape.chat] * len(patterns)
        try:
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
            self.close()
            self._end()

    def _encode(self, pattern: EventPattern, index: int, chunk: StreamChunk, out: list[str]) -> None:
        """Appends the events of one chunk. Text that is held back needs none; its log-probabilities wait for it."""
        answer = self.answers[index]
        self.add(answer, chunk)
        if chunk.finish_reason is None and not answer.logprobs:
            if chunk.text:
                out.append(pattern.text(chunk.text))
        elif chunk.finish_reason is not None:
            # OpenAI's last chunk of a choice has an empty delta, so text goes before it.
            logprobs = answer.take_logprobs(self.shape.chat)
            if self.shape.chat and (chunk.text or logprobs):
                out.append(pattern.full(chunk.text, None, logprobs))
                out.append(pattern.full("", answer.finish_reason, None, self._alignez(index)))
            else:
                out.append(pattern.full(chunk.text, answer.finish_reason, logprobs, self._alignez(index)))
        elif chunk.text:
            out.append(pattern.full(chunk.text, None, answer.take_logprobs(self.shape.chat)))

    def _end(self) -> None:
        """The response is over; what it took is counted, once."""
        if self.timing.end(self.answers):
            profiles = [personal.profile_id for personal in self.personal]
            for profile, (read, made) in usage_by_profile(self.answers, profiles, self.prompts).items():
                self.served.usage.count(self.tenant_id, profile, read, made)

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self.answers[index]
        text = "".join(answer.parts)
        body: dict[str, Any] = {"index": index, **(self.columns[index] if self.columns else {})}
        if self.shape.chat:
            body["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            body["text"] = text
        body["logprobs"] = answer.take_logprobs(self.shape.chat)
        body["finish_reason"] = answer.finish_reason
        return body

    def _alignez(self, index: int) -> dict[str, Any]:
        return {"alignez": self.personal[index].report()}
