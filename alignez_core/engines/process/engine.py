"""`ProcessEngine`: the caller's side, which checks and counts requests and forwards results."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from alignez_core.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Prompt,
    ScoreRequest,
    Span,
    StreamChunk,
)
from alignez_core.engines.common.admission import may_wait
from alignez_core.engines.common.checks import RequestChecks
from alignez_core.engines.common.loading import locate
from alignez_core.engines.common.streams import ChunkWriter, QueuedStream, StreamWriter, deliver
from alignez_core.engines.common.tokens import PromptFormatName, TextTokens
from alignez_core.engines.process.channel import Channel, SentPlans
from alignez_core.engines.slots.scheduler import EngineLoad
from alignez_core.errors import AlignezError, EngineCannotWalk, EngineClosed, EngineOverloaded, InvalidInput
from alignez_core.prompts import PromptFormat

_log = logging.getLogger(__name__)

#: Grace period before a child that was told to end is killed.
_END_S = 10.0


@dataclass
class _Stream:
    """A request in the child. It counts as waiting until its first chunk."""

    writer: StreamWriter
    group: str | None
    waits: bool = True


class ProcessEngine:
    """An `Engine`: `TransformersEngine` in a child process; make it with `load`. Safe to use from any thread."""

    def __init__(
        self,
        info: EngineInfo,
        tokens: TextTokens,
        prompt_format: PromptFormat,
        checks: RequestChecks,
        child: _Child,
        max_slots: int,
        max_waiting: int,
        on_lost: Callable[[str], None] | None,
    ) -> None:
        self._info = info
        self._tokens = tokens
        self._format = prompt_format
        self._checks = checks
        self._child = child
        self._max_slots = max_slots
        self._max_waiting = max_waiting
        self._on_lost = on_lost
        self._guard = threading.Lock()
        self._plans = SentPlans()
        self._next = 0
        self._streams: dict[int, _Stream] = {}
        # Appended to, without a lock, by streams that the garbage collector may close in any thread at any moment.
        self._dropped: deque[int] = deque()
        self._calls: dict[int, Future[Any]] = {}
        self._generated = 0
        self._closed = False
        child.serve(self._take, self._lost)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        max_slots: int = 64,
        max_waiting: int = 1024,
        max_cache_tokens: int | None = None,
        prompt_format: PromptFormatName = "auto",
        name: str | None = None,
        on_lost: Callable[[str], None] | None = None,
        prepare: Callable[[], None] | None = None,
        **arguments: Any,
    ) -> ProcessEngine:
        """The engine of the model in a directory or under a Hugging Face id; see `TransformersEngine.load`.

        Args:
            on_lost: called once, from a thread of the engine, with one line, when the child ends by itself. All that
                ran has failed with `EngineClosed` then, and the engine can only be closed.
            prepare: called in the child before it loads, to set up its logs for example; it must be picklable.
            arguments: further ones of `TransformersEngine.load`, as they are.
        Raises: as `TransformersEngine.load`; AlignezError: the child ended while it loaded.
        """
        if max_waiting < 0:
            raise InvalidInput("max_waiting", "must be 0 or more")
        child = _Child.start(
            str(path),
            {
                "revision": revision,
                "max_slots": max_slots,
                "max_cache_tokens": max_cache_tokens,
                "prompt_format": prompt_format,
                "name": name or Path(str(path)).name,
                **arguments,
            },
            prepare,
        )
        try:
            files = locate(path, revision)  # meanwhile the child loads the weights
            info = child.loaded()
            tokens = TextTokens(files.tokenizer, info.vocab_size, frozenset())  # the child knows the ends
            chosen_format = tokens.format(prompt_format)
        except BaseException:
            child.kill()
            raise
        checks = RequestChecks(info, tokens, max_cache_tokens=max_cache_tokens)
        return cls(info, tokens, chosen_format, checks, child, max_slots, max_waiting, on_lost)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def prompt_format(self) -> PromptFormat:
        return self._format

    @property
    def load_now(self) -> EngineLoad:
        """Load, counted from this side's streams; the number of steps is not available and is 0."""
        with self._guard:
            self._forget_dropped()
            waiting = sum(stream.waits for stream in self._streams.values())
            return EngineLoad(len(self._streams) - waiting, waiting, self._max_slots, self._generated, 0)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def tokenize(self, prompt: Prompt) -> list[int]:
        return self._tokens.prompt_ids(prompt)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        bare = [_without_edit(request, self._checks.prompt(request)) for request in requests]
        if not bare:
            return []
        done: list[Completion] = self._call("generate", bare, edits=[request.edit for request in requests])
        return done

    def stream(self, request: GenerationRequest) -> QueuedStream:
        bare = _without_edit(request, self._checks.prompt(request))
        writer = StreamWriter()
        with self._guard:
            self._require_open()
            self._require_room(request.group)
            number = self._number()
            self._streams[number] = _Stream(writer, request.group)
            self._child.send("start", number, bare, self._plans.wire(request.edit))
        return QueuedStream(writer, on_close=partial(self._drop, number))

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        ids, spans = self._checks.texts(texts, positions)
        if not ids:
            return torch.zeros(0, self._info.n_layers, self._info.hidden_size)
        return torch.from_numpy(self._call("represent", ids, spans))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = [ScoreRequest(prompt, tail) for prompt, tail in self._checks.scored(requests)]
        if not rows:
            return []
        scores = self._call("score", rows, edits=[request.edit for request in requests])
        return [torch.from_numpy(row) for row in scores]

    def walk(self, requests: Sequence[ScoreRequest], copies: int = 1) -> NoReturn:
        """Not supported: fits run in workers. Raises: EngineCannotWalk: a pass cannot pause across two processes."""
        raise EngineCannotWalk("ProcessEngine")

    def close(self) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
        self._child.end()
        self._fail_all(EngineClosed("the engine was closed"))

    def __enter__(self) -> ProcessEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, method: str, *content: Any, edits: Sequence[Any] | None = None) -> Any:
        """Waits for a whole result. Its plans are put on the wire in the order in which messages are sent."""
        future: Future[Any] = Future()
        with self._guard:
            self._require_open()
            number = self._number()
            self._calls[number] = future
            plans = () if edits is None else ([self._plans.wire(edit) for edit in edits],)
            self._child.send(method, number, *content, *plans)
        return future.result()

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed")
        if self._child.lost is not None:
            raise EngineClosed(self._child.lost)

    def _require_room(self, group: str | None) -> None:
        """Raises: EngineOverloaded. A request counts as waiting until its first chunk comes."""
        self._forget_dropped()
        waiting = [stream.group for stream in self._streams.values() if stream.waits]
        if not may_wait(len(self._streams), self._max_slots, self._max_waiting, group in waiting):
            raise EngineOverloaded(len(waiting), self._max_waiting)

    def _drop(self, number: int) -> None:
        self._dropped.append(number)
        self._child.send("cancel", number)

    def _forget_dropped(self) -> None:
        while self._dropped:
            self._streams.pop(self._dropped.popleft(), None)

    # On the child's reader thread

    def _take(self, block: list[Any]) -> None:
        """Delivers one block of messages; the chunks of a step wake each event loop once."""
        chunks: list[tuple[ChunkWriter, StreamChunk]] = []
        for kind, number, *content in block:
            if kind == "chunk":
                stream = self._streams.get(number)
                if stream is None:
                    continue
                chunk = StreamChunk(*content)
                stream.waits = False
                self._generated += len(chunk.token_ids)
                if chunk.finish_reason is not None:
                    self._forget(number)
                chunks.append((stream.writer, chunk))
            elif kind == "failed":
                # Deliver earlier chunks first: a failed stream accepts no more.
                deliver(chunks)
                chunks = []
                self._failed(number, content[0])
            else:
                with self._guard:
                    future = self._calls.pop(number, None)
                if future is not None:
                    future.set_result(content[0])
        deliver(chunks)

    def _failed(self, number: int, error: BaseException) -> None:
        with self._guard:
            stream, future = self._streams.pop(number, None), self._calls.pop(number, None)
        if stream is not None:
            stream.writer.fail(error)
        if future is not None:
            future.set_exception(error)

    def _forget(self, number: int) -> None:
        with self._guard:
            self._streams.pop(number, None)
            self._forget_dropped()

    def _lost(self, line: str) -> None:
        with self._guard:
            closing = self._closed
        self._fail_all(EngineClosed("the engine was closed" if closing else line))
        if not closing:
            _log.error("%s", line)
            if self._on_lost is not None:
                self._on_lost(line)

    def _fail_all(self, error: EngineClosed) -> None:
        with self._guard:
            streams, self._streams = list(self._streams.values()), {}
            futures, self._calls = list(self._calls.values()), {}
        for stream in streams:
            stream.writer.fail(error)
        for future in futures:
            future.set_exception(error)


class _Child:
    """The process, and the channel to it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self._process = process
        self._channel = channel
        self._reader: threading.Thread | None = None
        #: Error message if the child has ended unexpectedly.
        self.lost: str | None = None

    @classmethod
    def start(cls, path: str, arguments: dict[str, Any], prepare: Callable[[], None] | None) -> _Child:
        """A child that begins to load."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "alignez_core.engines.process.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        channel = Channel(ours)
        channel.send((path, arguments, prepare))
        return cls(process, channel)

    @property
    def pid(self) -> int:
        return self._process.pid

    def loaded(self) -> EngineInfo:
        """Waits for the model. Raises: the child's error of loading; AlignezError: the child ended without one."""
        block = self._channel.receive()
        if block is None:
            raise AlignezError(f"the engine's process ended while it loaded the model ({self._exit()})")
        (said,) = block
        if isinstance(said, EngineInfo):
            return said
        raise said

    def serve(self, take: Callable[[list[Any]], None], lost: Callable[[str], None]) -> None:
        """Reads on a thread from now on."""

        def read() -> None:
            try:
                while (block := self._channel.receive()) is not None:
                    take(block)
            except Exception:
                # No request can be answered after an unreadable message, so the child is treated as lost.
                _log.exception("unreadable message from the engine's process")
                self._process.kill()
            self.lost = f"the engine's process has ended ({self._exit()})"
            lost(self.lost)

        self._reader = threading.Thread(target=read, name="alignez-engine-reader", daemon=True)
        self._reader.start()

    def send(self, *message: Any) -> None:
        self._channel.send(message)

    def end(self) -> None:
        """Asks it to end, waits, and kills it if need be."""
        self.send("end")
        if self._reader is not None:
            self._reader.join(_END_S)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        self._channel.close()

    def _exit(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        code = self._process.poll()
        if code is None:
            return "it closed the connection but is still running"
        return f"signal {-code}; signal 9 often means out of memory" if code < 0 else f"exit code {code}"


def _without_edit(request: GenerationRequest, prompt: list[int]) -> GenerationRequest:
    return replace(request, prompt=prompt, edit=None)
