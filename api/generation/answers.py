"""The state of one choice while it is generated, and its representation in OpenAI's formats."""

from __future__ import annotations

import codecs
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from opentelemetry.trace import INVALID_SPAN, Span

from api.metrics import Metrics

if TYPE_CHECKING:
    from alignez_core.engines.base import StreamChunk, TokenLogprob

_UTF_8 = codecs.getincrementaldecoder("utf-8")


@dataclass
class Answer:
    """A choice of a reply, and its progress. `parts` holds the text, unless the reply is streamed."""

    prompt_tokens: int
    tokens: int = 0
    finish_reason: str | None = None
    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    #: Characters of all tokens whose log-probabilities have been reported (`text_offset` of completions).
    characters: int = 0
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _UTF_8("replace"))

    def add(self, chunk: StreamChunk) -> None:
        """Adds a chunk: tokens, log-probabilities and finish reason."""
        self.tokens += len(chunk.token_ids)
        if chunk.logprobs:
            self.logprobs.extend(chunk.logprobs)
        if chunk.finish_reason is not None:
            self.finish_reason = "stop" if chunk.finish_reason == "cancelled" else chunk.finish_reason

    def take_logprobs(self, chat: bool) -> dict[str, Any] | None:
        """The log-probabilities gathered since the last call, in the form of chat or text completions."""
        if not self.logprobs:
            return None
        taken, self.logprobs = self.logprobs, []
        if chat:
            return chat_logprobs(taken)
        return completion_logprobs(taken, [self._pass(entry.raw) for entry in taken])

    def _pass(self, raw: bytes) -> int:
        """Returns the number of characters before a token, and adds the token's own, at the last byte of each."""
        before = self.characters
        self.characters += len(self._decoder.decode(raw))
        return before


@dataclass
class Timing:
    """Records the times of a response's first and last token in metrics and trace."""

    metrics: Metrics
    started: float
    span: Span = INVALID_SPAN  #: of the engine's work on the response
    first: float | None = None
    queued_s: float | None = None  #: the longest of the choices
    _open: bool = True

    def begin(self, span: Span) -> None:
        """Records that the engine has the request."""
        self.span = span
        self.metrics.waiting.inc()

    def token(self) -> None:
        """Records the first token; ignores later ones."""
        if self.first is None and self._open:
            self.first = time.perf_counter()
            self.metrics.waiting.dec()
            self.metrics.running.inc()
            self.metrics.first_token.observe(self.first - self.started)
            self.span.add_event("first_token")

    def queued(self, seconds: float) -> None:
        """Records the time that a choice waited for admission to the engine's batch."""
        self.metrics.queue_seconds.observe(seconds)
        self.queued_s = max(seconds, self.queued_s or 0.0)

    def end(self, answers: list[Answer]) -> bool:
        """Records the end of a response, complete or aborted; returns False if it was recorded before."""
        if not self._open:
            return False
        self._open = False
        m = self.metrics
        (m.waiting if self.first is None else m.running).dec()
        now = time.perf_counter()
        if answers:
            m.prompt_tokens.inc(answers[0].prompt_tokens)
        for answer in answers:
            m.generation_tokens.inc(answer.tokens)
            m.answer_tokens.observe(answer.tokens)
            m.finished.labels(answer.finish_reason or "abort").inc()
            if self.first is not None and answer.tokens > 1:
                m.inter_token.observe((now - self.first) / (answer.tokens - 1))
        m.end_to_end.observe(now - self.started)
        self._end_span(answers)
        return True

    def _end_span(self, answers: list[Answer]) -> None:
        if self.span.is_recording():
            self.span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": answers[0].prompt_tokens if answers else 0,
                    "gen_ai.usage.output_tokens": sum(answer.tokens for answer in answers),
                    "gen_ai.response.finish_reasons": [answer.finish_reason or "abort" for answer in answers],
                }
            )
            if self.queued_s is not None:
                self.span.set_attribute("gen_ai.latency.time_in_queue", self.queued_s)  # vLLM's name
        self.span.end()


def usage(answers: list[Answer], prompts: int = 1) -> dict[str, int]:
    """OpenAI's token counts; a prompt counts once, whatever its number of choices.

    Args:
        prompts: answers come in `prompts` groups of equal length, one group per prompt.
    """
    per_prompt = len(answers) // prompts
    read = sum(answer.prompt_tokens for answer in answers[::per_prompt])
    made = sum(answer.tokens for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def usage_by_profile(
    answers: list[Answer], profiles: list[UUID | None], prompts: int = 1
) -> dict[UUID | None, tuple[int, int]]:
    """Profile (None: the bare base model) → prompt tokens and generated tokens.

    A prompt counts once for each profile that answers it, whatever its number of choices.

    Args:
        profiles: the profile of each answer. prompts: as for `usage`.
    """
    per_prompt = len(answers) // prompts
    read: dict[UUID | None, dict[int, int]] = {}
    made: Counter[UUID | None] = Counter()
    for i, (answer, profile) in enumerate(zip(answers, profiles, strict=True)):
        read.setdefault(profile, {})[i // per_prompt] = answer.prompt_tokens
        made[profile] += answer.tokens
    return {profile: (sum(tokens.values()), made[profile]) for profile, tokens in read.items()}


def chat_logprobs(entries: list[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities in the format of chat completions."""
    return {
        "content": [
            {**_chat_token(entry), "top_logprobs": [_chat_token(other) for other in entry.top]} for entry in entries
        ],
        "refusal": None,
    }


def completion_logprobs(entries: list[TokenLogprob], offsets: list[int]) -> dict[str, Any]:
    """Log-probabilities in the older format of text completions.

    Args:
        offsets: for each token, the number of characters before it.
    """
    return {
        "tokens": [_label(entry) for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        # The chosen token is always included, so there may be one more than requested.
        "top_logprobs": [{_label(other): _finite(other.logprob) for other in (*entry.top, entry)} for entry in entries],
        "text_offset": offsets,
    }


def _chat_token(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": _finite(entry.logprob), "bytes": list(entry.raw) or None}


def _label(entry: TokenLogprob) -> str:
    """A token as text, or `bytes:\\xf0\\x9f`, OpenAI's older notation for bytes that are not valid UTF-8."""
    try:
        entry.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.raw)
    return entry.token


def _finite(logprob: float) -> float:
    # A token excluded from sampling has log-probability −inf, which JSON cannot express; OpenAI sends −9999.
    return max(logprob, -9999.0)
