"""The `Engine` port: the interface of a language model, independent of the library that runs it.

An edit belongs to a request and travels as its argument. Nobody sets "the current profile" on a shared model, so
requests of different users, with different profiles or none, run in one batch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.errors import InvalidInput
from alignez_core.prompts import PromptFormat

#: A prompt is text that a `PromptFormat` rendered (it says how it is tokenised), raw text (special tokens are added as
#: the tokenizer does) or token ids (taken as they are).
Prompt = str | Sequence[int]
FinishReason = Literal["stop", "length", "cancelled"]
#: More than any vocabulary holds, and still an integer that every device can compare with.
MAX_TOP_K = 2**31 - 1


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling values of a model's `generation_config`, used where a request names none (as vLLM does)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, generation: object) -> SamplingDefaults:
        """From a `transformers.GenerationConfig` or None; missing and out-of-range values are ignored."""
        fallback = cls()
        temperature, top_p, top_k = (getattr(generation, name, None) for name in ("temperature", "top_p", "top_k"))
        return cls(
            float(temperature) if temperature is not None and 0 <= temperature <= 100 else fallback.temperature,
            float(top_p) if top_p is not None and 0 < top_p <= 1 else fallback.top_p,
            int(top_k) if top_k is not None and 0 <= top_k <= MAX_TOP_K else fallback.top_k,
        )


@dataclass(frozen=True)
class EngineInfo:
    """Facts about a loaded model."""

    name: str
    fingerprint: str  #: SHA-256 over configuration and weights; a profile fits exactly one fingerprint.
    n_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    dtype: str
    device: str
    prompt_format: str  #: "plain" or "chat"
    revision: str | None = None
    sampling_defaults: SamplingDefaults = SamplingDefaults()


@dataclass(frozen=True)
class GenerationRequest:
    """A request for one answer: the prompt, the sampling settings, and the edit that applies to the answer.

    Args:
        prompt: text or token ids.
        max_tokens: new tokens at most, ≥ 1.
        temperature: 0 (and what is below 1e-5) is greedy.
        top_p: in (0, 1]. top_k: 0 is off, at most 2³¹ − 1.
        seed: of the request's own random stream, so that its tokens do not depend on other requests. None: random.
        stop: strings that end the text; the text is cut before them. A special token's text also names that token,
            which is never in the text.
        stop_token_ids: tokens that end the answer as the end-of-sequence token does, with `ignore_eos` too.
        ignore_eos: go on past the end-of-sequence token.
        logprobs: None, or how many alternatives (0 to 20) to report beside each token.
        edit: None is the bare model.
        group: the caller, for fairness. Groups take turns in admitting waiting requests, so that many requests of one
            caller do not delay the few of another. It affects neither the answer nor the equality of requests.
    """

    prompt: Prompt
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    edit: EditPlan | None = None
    group: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(0.0 <= self.temperature <= 100.0, "temperature", "must be between 0 and 100")
        _require(0.0 < self.top_p <= 1.0, "top_p", "must be above 0 and at most 1")
        _require(0 <= self.top_k <= MAX_TOP_K, "top_k", f"must be between 0 (off) and {MAX_TOP_K}")
        _require(self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs", "must be between 0 and 20")
        _require(len(self.prompt) > 0, "prompt", "must not be empty")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        _require(all(self.stop), "stop", "must not hold an empty string")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _require(all(t >= 0 for t in self.stop_token_ids), "stop_token_ids", "must not hold a negative id")


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability (nats, of the untempered model distribution) of one token, and of its alternatives.

    Args:
        raw: the token's bytes, which for a part of a character are no text. Those of an answer's tokens joined are its
            text in UTF-8; the token that ended it is not part of the text. Empty for a special token.
        top: the most likely first; they have no alternatives of their own.
    """

    token_id: int
    token: str
    logprob: float
    raw: bytes
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Completion:
    """Result of one request. `token_ids` holds the token that ended it (EOS or a stop token), `text` does not."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_tokens: int = 0
    #: Prompt tokens found in a prefix cache; the answer does not depend on them.
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class StreamChunk:
    """The next piece of a streamed answer; pieces of text joined are `Completion.text`.

    `text` can be empty: bytes of an unfinished character, or a possible beginning of a stop string, are held back.

    Attributes:
        queued_s: on a row's first chunk, how long it waited to be let into the running batch; None on the others,
            and from engines that do not know it.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_tokens: int = 0
    queued_s: float | None = field(default=None, compare=False)


class TokenStream(Protocol):
    """A running request, as an iterator and an async iterator; closing it, or leaving the loop, cancels the request."""

    def __iter__(self) -> Iterator[StreamChunk]: ...

    def __aiter__(self) -> AsyncIterator[StreamChunk]: ...

    def close(self) -> None:
        """Stops the request within one step. Safe to call twice and from any thread."""
        ...


@dataclass(frozen=True)
class ScoreRequest:
    """A continuation to score."""

    prompt: Prompt
    continuation: Prompt  #: text is tokenised without special tokens
    edit: EditPlan | None = None


@dataclass(frozen=True)
class Span:
    """Token positions start ≤ t < end of one text; `represent` averages over them."""

    start: int
    end: int

    def __post_init__(self) -> None:
        _require(0 <= self.start < self.end, "positions", f"span {self.start} to {self.end} is empty or negative")


@dataclass(frozen=True, eq=False)
class BlockStates:
    """One block's activations at the positions that predict the tokens of given answers.

    Args:
        x: (T, D) float32, what the block's MLP adds to the residual stream: the site of edits.
        r: (T, D) float32, the residual stream after the block.
    """

    x: Tensor
    r: Tensor


class BlockPass(Protocol):
    """A forward pass over prompts with given answers that pauses after chosen blocks.

    T counts the positions of all requests together, in request order: of each, those that predict its answer's
    tokens, the last prompt token first.
    """

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions per request; their sum is T."""
        ...

    @property
    def site_scale(self) -> float:
        """Factor by which a site's output is multiplied before it joins the residual stream; 1 but for Granite."""
        ...

    def after(self, layer: int) -> BlockStates:
        """Goes on until block `layer` is done; layers must be asked for in ascending order."""
        ...

    def fork(self) -> None:
        """Continues in the number of copies given to `walk`; T then counts all of them, copy by copy.

        Allowed once, at the current block; the computation up to it is shared by the copies.
        """
        ...

    def add(self, delta: Tensor) -> None:
        """Adds (T, D) to the residual stream after the block at which the pass stands."""
        ...

    def logits(self) -> Tensor:
        """Runs the remaining blocks; (T, vocabulary) float32. Not allowed after `fork`."""
        ...

    def close(self) -> None:
        """Aborts the pass and frees its memory. Safe to call twice."""
        ...


def pass_bytes(tokens: int, hidden_size: int, bytes_per_number: int) -> int:
    """Bytes that a halted pass over `tokens` tokens keeps: its residual stream, and x and r in float32."""
    return tokens * hidden_size * (bytes_per_number + 2 * 4)


@runtime_checkable
class Engine(Protocol):
    """One language model, shared by all requests. Every method is safe to call from any thread."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def prompt_format(self) -> PromptFormat: ...

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The token ids that the model sees for this prompt, special tokens included."""
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Completes all requests, in their order; they share batches with all other running requests.

        Raises: ContextTooLong: prompt + max_tokens exceed the context. ModelMismatch: an edit for another model.
            RequestTooLarge: more than the engine may ever hold. OutOfMemory, EngineClosed.
        """
        ...

    def stream(self, request: GenerationRequest) -> TokenStream:
        """Starts one request and returns at once. Raises as `generate`, plus EngineOverloaded."""
        ...

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        """MLP outputs of every layer, unedited, at one place of each text.

        Args:
            texts: N prompts.
            positions: "last" token, or a span per text to average over.
        Returns: (N, L, D) float32 on the CPU, L = all layers of the model.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """Log-probabilities of given continuations, one forward pass each.

        Returns: per request (T,) float32 on the CPU, nats, T tokens of its continuation.
        """
        ...

    def walk(self, requests: Sequence[ScoreRequest], copies: int = 1) -> BlockPass:
        """Starts a pass over prompts and continuations that halts between blocks, edits applied.

        Args:
            copies: into which the pass may fork; then requests bring no edits.
        Raises: ContextTooLong, ModelMismatch. EngineCannotWalk: this engine cannot halt between blocks.
        """
        ...

    def close(self) -> None:
        """Ends running requests with `EngineClosed` and frees the model. Safe to call twice."""
        ...


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise InvalidInput(field, message)
