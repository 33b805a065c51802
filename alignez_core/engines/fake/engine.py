"""A deterministic engine without a model, for tests of everything around an engine.

Tokens are whitespace-separated pieces of text. An answer depends on the prompt, the edit and (above temperature 0)
the seed, and its first token names the edit: `edit=<sha256>` or `plain`.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alignez_core.engines.base import (
    Completion,
    EngineInfo,
    FinishReason,
    GenerationRequest,
    Prompt,
    SamplingDefaults,
    ScoreRequest,
    Span,
    StreamChunk,
    TokenLogprob,
)
from alignez_core.engines.common.checks import RequestChecks
from alignez_core.engines.common.streams import QueuedStream, StreamWriter
from alignez_core.engines.fake.block_pass import FakePass
from alignez_core.errors import EngineClosed, EngineOverloaded
from alignez_core.prompts import PlainFormat, PromptFormat

_WORDS = re.findall(
    r"\w+",
    "the tide turns early and you may walk along the shore while bread cools on a table near the open window "
    "because every small plan needs some light a good map two friends enough time and one clear question",
)
_VOCAB = 1 << 20
_EOS = 1


class FakeEngine:
    """An `Engine` that makes its answers up.

    Args:
        name, n_layers, hidden_size, context_length: what `info` reports; the fingerprint follows from name and sizes.
        sampling_defaults: what `info` reports.
        step_s: delay before each token, seconds.
        max_waiting: streams running at once before `EngineOverloaded`.
        reply: makes the whole answer instead of the built-in words (the edit's marker is then left out).
        fail_after: with `error`, the number of tokens after which every request fails.
        error: what it fails with.

    Attributes:
        requests: every generation request seen, in order. running: requests that are being answered.
    """

    def __init__(
        self,
        *,
        name: str = "fake",
        n_layers: int = 4,
        hidden_size: int = 16,
        context_length: int = 512,
        step_s: float = 0.0,
        max_waiting: int = 256,
        prompt_format: PromptFormat | None = None,
        sampling_defaults: SamplingDefaults | None = None,
        reply: Callable[[GenerationRequest], str] | None = None,
        error: Exception | None = None,
        fail_after: int = 0,
    ) -> None:
        self._format: PromptFormat = prompt_format or PlainFormat()
        fingerprint = hashlib.sha256(f"{name} {n_layers} {hidden_size}".encode()).hexdigest()
        self._info = EngineInfo(
            name, fingerprint, n_layers, hidden_size, _VOCAB, context_length, "float32", "cpu", self._format.name,
            sampling_defaults=sampling_defaults or SamplingDefaults(),
        )  # fmt: skip
        self._checks = RequestChecks(self._info, _PiecesAsTokens())
        self._step_s = step_s
        self._max_waiting = max_waiting
        self._reply = reply
        self._error, self._fail_after = error, fail_after
        # A fit walks over the same texts once per form of its edit.
        self._states = functools.lru_cache(maxsize=512)(self._make_states)
        self._lock = threading.Lock()
        self._writers: set[StreamWriter] = set()
        self._closed = threading.Event()
        self.requests: list[GenerationRequest] = []
        self.running = 0
        # Appended to, without a lock, by streams that the garbage collector may close in any thread at any moment.
        self._cancellations: list[None] = []

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def prompt_format(self) -> PromptFormat:
        return self._format

    @property
    def cancelled(self) -> int:
        """Streams closed, or dropped, before their end."""
        return len(self._cancellations)

    def tokenize(self, prompt: Prompt) -> list[int]:
        return _PiecesAsTokens().prompt_ids(prompt)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        lengths = [self._check(request) for request in requests]
        done = []
        for request, length in zip(requests, lengths, strict=True):
            chunks: list[StreamChunk] = []
            self._answer(request, length, chunks.append, lambda: False)
            logprobs = [entry for chunk in chunks for entry in chunk.logprobs or ()]
            done.append(
                Completion(
                    "".join(chunk.text for chunk in chunks),
                    tuple(token for chunk in chunks for token in chunk.token_ids),
                    chunks[-1].finish_reason or "length",
                    None if request.logprobs is None else tuple(logprobs),
                    length,
                )
            )
        return done

    def stream(self, request: GenerationRequest) -> QueuedStream:
        length = self._check(request)
        writer = StreamWriter()
        with self._lock:
            if len(self._writers) >= self._max_waiting:
                raise EngineOverloaded(len(self._writers), self._max_waiting)
            self._writers.add(writer)
        thread = threading.Thread(target=self._run, args=(request, length, writer), name="fake-engine", daemon=True)
        thread.start()
        return QueuedStream(writer, self._count_cancelled)

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        self._require_open()
        rows = []
        for ids, span in zip(*self._checks.texts(texts, positions), strict=True):
            rows.append(np.mean([self._vector(ids[: t + 1]) for t in range(span.start, span.end)], axis=0))
        shape = (len(rows), self._info.n_layers, self._info.hidden_size)
        return torch.from_numpy(np.asarray(rows, dtype=np.float32).reshape(shape))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        self._require_open()
        scores = []
        for request, (ids, tail) in zip(requests, self._checks.scored(requests), strict=True):
            key = request.edit.sha256 if request.edit else ""
            values = [_logprob(key, ids + tail[:t], tail[t]) for t in range(len(tail))]
            scores.append(torch.tensor(values, dtype=torch.float32))
        return scores

    def walk(self, requests: Sequence[ScoreRequest], copies: int = 1) -> FakePass:
        self._require_open()
        rows = self._checks.scored(requests)
        states = [self._states(tuple(ids), tuple(tail)) for ids, tail in rows]
        return FakePass(states, [r.edit for r in requests], self._info.n_layers, self._info.hidden_size, copies)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            writers = list(self._writers)
        for writer in writers:
            writer.fail(EngineClosed("the engine was closed"))

    def _check(self, request: GenerationRequest) -> int:
        self._require_open()
        return len(self._checks.prompt(request))

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise EngineClosed("the engine is closed")

    def _run(self, request: GenerationRequest, length: int, writer: StreamWriter) -> None:
        try:
            self._answer(request, length, writer.push, lambda: writer.closed)
        except Exception as error:  # whatever it is belongs to the reader of this stream
            writer.fail(error)
        finally:
            with self._lock:
                self._writers.discard(writer)

    def _count_cancelled(self) -> None:
        self._cancellations.append(None)

    def _answer(
        self,
        request: GenerationRequest,
        prompt_tokens: int,
        push: Callable[[StreamChunk], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        with self._lock:
            self.requests.append(request)
            self.running += 1
        try:
            self._push_tokens(request, prompt_tokens, push, is_cancelled)
        finally:
            with self._lock:
                self.running -= 1

    def _push_tokens(
        self,
        request: GenerationRequest,
        prompt_tokens: int,
        push: Callable[[StreamChunk], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        pieces = self._pieces_of_answer(request)
        text = ""
        sent = 0
        for n in range(request.max_tokens):
            if self._step_s:
                time.sleep(self._step_s)
            if is_cancelled():
                return
            self._require_open()
            if self._error is not None and n >= self._fail_after:
                raise self._error
            ended = n >= len(pieces) and not request.ignore_eos
            piece = "" if ended else pieces[n] if n < len(pieces) else f" {_WORDS[n % len(_WORDS)]}"
            token = _EOS if ended else _token_id(piece)
            if token in request.stop_token_ids:
                ended, piece = True, ""
            text += piece
            cut = min((i for i in (text.find(stop) for stop in request.stop) if i >= 0), default=None)
            reason: FinishReason | None = "stop" if ended or cut is not None else None
            if reason is None and n + 1 == request.max_tokens:
                reason = "length"
            if cut is not None:
                text = text[:cut]
            held = 0 if reason else _held_back(text, request.stop)
            fresh = text[sent : len(text) - held]
            sent += len(fresh)
            logprobs = None if request.logprobs is None else (_token_logprob(token, piece, request.logprobs),)
            queued_s = 0.0 if n == 0 else None  # a thread for each: nobody waits
            push(StreamChunk(fresh, (token,), reason, logprobs, prompt_tokens, queued_s))
            if reason is not None:
                return

    def _pieces_of_answer(self, request: GenerationRequest) -> list[str]:
        if self._reply is not None:
            return _pieces(self._reply(request))
        edited = request.edit is not None and not request.edit.is_identity
        marker = f" edit={request.edit.sha256}" if edited and request.edit else " plain"
        draw = ""
        if request.temperature > 0:
            draw = str(time.perf_counter_ns() if request.seed is None else request.seed)
        key = f"{self.tokenize(request.prompt)} {marker} {draw}".encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "little"))
        words = [f" {_WORDS[i]}" for i in rng.integers(0, len(_WORDS), size=int(rng.integers(6, 24)))]
        return [marker, *words]

    def _make_states(self, prompt: tuple[int, ...], tail: tuple[int, ...]) -> Tensor:
        """(t, L, D) MLP outputs at the positions that predict the tail."""
        ids = [*prompt, *tail]
        rows = [self._vector(ids[: len(prompt) + t]) for t in range(len(tail))]
        shape = (len(tail), self._info.n_layers, self._info.hidden_size)
        return torch.from_numpy(np.asarray(rows, dtype=np.float32).reshape(shape))

    def _vector(self, ids: Sequence[int]) -> np.ndarray:
        """(L, D) vectors of the last of these tokens."""
        seed = int.from_bytes(hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal((self._info.n_layers, self._info.hidden_size))


class _PiecesAsTokens:
    """The tokenizer: a piece of text is a token, and nothing is added."""

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return [_token_id(piece) for piece in _pieces(prompt)] if isinstance(prompt, str) else list(prompt)

    continuation_ids = prompt_ids


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _token_id(piece: str) -> int:
    return 2 + int.from_bytes(hashlib.sha256(piece.encode()).digest()[:4], "little") % (_VOCAB - 2)


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a prefix of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    return next((n for n in range(min(longest, len(text)), 0, -1) if text.endswith(tuple(s[:n] for s in stops))), 0)


def _logprob(key: str, ids: Sequence[int], token: int) -> float:
    digest = hashlib.sha256(f"{key} {list(ids)} {token}".encode()).digest()
    return -0.01 - 5.0 * digest[0] / 255


def _token_logprob(token: int, piece: str, alternatives: int) -> TokenLogprob:
    chosen = _logprob("", (), token)
    top = [TokenLogprob(token, piece, chosen, piece.encode())]
    for n, word in enumerate(_WORDS[: max(alternatives - 1, 0)], 1):
        top.append(TokenLogprob(_token_id(f" {word}"), f" {word}", chosen - n, f" {word}".encode()))
    return TokenLogprob(token, piece, chosen, piece.encode(), tuple(top[:alternatives]))
