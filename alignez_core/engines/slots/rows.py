"""One request on its way through the engine: its tokens, its text, and where its results go."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import torch
from torch import Tensor

from alignez_core.engines.base import Completion, FinishReason, GenerationRequest, StreamChunk, TokenLogprob
from alignez_core.engines.common.detokenize import IncrementalText, full_text
from alignez_core.engines.common.sampling import SamplingParams
from alignez_core.engines.common.streams import ChunkWriter
from alignez_core.engines.common.tokens import TextTokens


class Sink(Protocol):
    """Destination of one row's outcome."""

    @property
    def cancelled(self) -> bool:
        """True once the row's caller has given up."""
        ...

    def finish(self, completion: Completion) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class StreamSink:
    """Chunks to a stream; the scheduler delivers them, this only ends the stream on an error."""

    def __init__(self, writer: ChunkWriter) -> None:
        self.writer = writer

    @property
    def cancelled(self) -> bool:
        return self.writer.closed

    def finish(self, completion: Completion) -> None:
        """Does nothing: the last chunk carried the finish reason."""

    def fail(self, error: BaseException) -> None:
        self.writer.fail(error)


class ResultList:
    """Completions of one `generate` call, in its order."""

    def __init__(self, count: int) -> None:
        self._completions: list[Completion | None] = [None] * count
        self._left = count
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self.cancelled = False

    def sink(self, index: int) -> ListSink:
        return ListSink(self, index)

    def put(self, index: int, completion: Completion) -> None:
        with self._lock:
            self._completions[index] = completion
            self._left -= 1
            if not self._left:
                self._done.set()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self.cancelled = True
            self._done.set()

    def wait(self) -> list[Completion]:
        """Blocks until all are there. Raises the first error; the other rows are then cancelled."""
        try:
            self._done.wait()
        finally:
            self.cancelled = True
        if self._error is not None:
            raise self._error
        return [completion for completion in self._completions if completion is not None]


class ListSink:
    """The sink of one row whose result goes into a `ResultList`."""

    def __init__(self, results: ResultList, index: int) -> None:
        self._results = results
        self._index = index

    @property
    def cancelled(self) -> bool:
        return self._results.cancelled

    def finish(self, completion: Completion) -> None:
        self._results.put(self._index, completion)

    def fail(self, error: BaseException) -> None:
        self._results.fail(error)


@dataclass(frozen=True)
class TokenAlternatives:
    """Log-probabilities of one step's chosen tokens and of the most likely ones, for the rows that asked."""

    chosen: list[float]
    top_ids: list[list[int]]
    top: list[list[float]]


def alternatives(logits: Tensor, tokens: Tensor, count: int) -> TokenAlternatives:
    """Log-probabilities, nats, of the untempered distribution. logits: (B, V). tokens: (B,)."""
    logprobs = torch.log_softmax(logits.float(), -1)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    top, ids = logprobs.topk(min(count, logits.shape[-1]), -1)
    return TokenAlternatives(chosen, ids.tolist(), top.tolist())


class Row:
    """A request with its state.

    Args:
        prompt: its token ids.
        seed: the row's own, made up if the request has none.
    """

    def __init__(
        self, request: GenerationRequest, prompt: Sequence[int], sink: Sink, tokens: TextTokens, seed: int
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.sink = sink
        self.edit = None if request.edit is None or request.edit.is_identity else request.edit
        self.params = SamplingParams(request.temperature, request.top_p, request.top_k, seed)
        self.generated: list[int] = []
        self._made = monotonic()
        self._queued_s = 0.0
        self._tokens = tokens
        stops = tokens.stop_ids(request.stop).union(request.stop_token_ids)
        self._ends = stops if request.ignore_eos else stops | tokens.eos_ids
        self._writer = sink.writer if isinstance(sink, StreamSink) else None
        # Text is decoded incrementally only for streams and stop strings.
        incremental = self._writer is not None or request.stop
        self._text = IncrementalText(tokens.text, request.stop) if incremental else None
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def admit(self) -> None:
        """Marks the request as admitted; its first chunk reports the time in the queue."""
        self._queued_s = monotonic() - self._made

    def accept(self, token: int, logprob: TokenLogprob | None) -> tuple[FinishReason | None, StreamChunk | None]:
        """Takes the next token; says whether the row is done, and what to stream."""
        self.generated.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        reason: FinishReason | None = None
        ended = token in self._ends
        if ended:
            reason = "stop"
        elif len(self.generated) >= self.request.max_tokens:
            reason = "length"
        text = self._text
        if text is None:
            return reason, None
        piece = "" if ended else text.add(token)
        if reason is not None and not text.stopped:
            piece += text.finish()
        if text.stopped:
            reason = "stop"
        if self._writer is None:
            self._pieces.append(piece)
            return reason, None
        logprobs = None if logprob is None else (logprob,)
        queued_s = self._queued_s if len(self.generated) == 1 else None
        return reason, StreamChunk(piece, (token,), reason, logprobs, len(self.prompt), queued_s)

    @property
    def group(self) -> str | None:
        """Fairness group of the request."""
        return self.request.group

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt)

    @property
    def cancelled(self) -> bool:
        """True once the row's caller has given up."""
        return self.sink.cancelled

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values the row may come to hold: its prompt and all that it may generate."""
        return len(self.prompt) + self.request.max_tokens

    @property
    def writer(self) -> ChunkWriter | None:
        """The stream of this row, if it is streamed."""
        return self._writer

    def completion(self, reason: FinishReason) -> Completion:
        """The outcome of a finished row."""
        ids = self.generated[:-1] if self.generated[-1] in self._ends else self.generated
        text = "".join(self._pieces) if self._text is not None else full_text(self._tokens.text, ids)
        logprobs = None if self.request.logprobs is None else tuple(self._logprobs)
        return Completion(text, tuple(self.generated), reason, logprobs, len(self.prompt))

    def token_logprob(self, token: int, found: TokenAlternatives, index: int) -> TokenLogprob:
        """This row's entry of one step's alternatives."""
        count = self.request.logprobs or 0
        top = zip(found.top_ids[index][:count], found.top[index][:count], strict=True)
        return self._tokens.logprob(token, found.chosen[index], first=not self.generated, top=top)
