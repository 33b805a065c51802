"""The process that holds the model: `python -m alignez_core.engines.process.child FD`, started by `ProcessEngine` only.

It ends when the connection closes, also if the parent was killed. It ignores signals to the process group, because the
parent drains first.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from alignez_core.engines.base import GenerationRequest, ScoreRequest, StreamChunk
from alignez_core.engines.process.channel import Channel, ReceivedPlans
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import AlignezError


def main(descriptor: int) -> None:
    """Loads the model that the first message names, reports success or the error, and serves requests."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    try:
        block = channel.receive()
        if block is None:
            return
        (path, arguments, prepare), *rest = block
        try:
            if prepare is not None:
                prepare()
            engine = TransformersEngine.load(path, **arguments)
        except Exception as error:
            channel.send(_portable(error))
            return
        channel.send(engine.info)
        with engine:
            _Server(engine, channel).serve(rest)
    finally:
        channel.close()


class _Server:
    """Does what messages ask for, until there are no more."""

    def __init__(self, engine: TransformersEngine, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._plans = ReceivedPlans()
        self._writers: dict[int, _Writer] = {}

    def serve(self, block: list[Any] | None) -> None:
        while block is not None:
            for kind, *content in block:
                if kind == "end":
                    return
                getattr(self, f"_{kind}")(*content)
            block = self._channel.receive()

    def _start(self, number: int, request: GenerationRequest, plan: Any) -> None:
        writer = _Writer(number, self._channel, lambda: self._writers.pop(number, None))
        self._writers[number] = writer
        try:
            # The parent has counted who waits; it may be a moment ahead of this queue.
            self._engine.start(replace(request, edit=self._plans.plan(plan)), writer, bounded=False)
        except Exception as error:
            writer.fail(error)

    def _cancel(self, number: int) -> None:
        writer = self._writers.pop(number, None)
        if writer is not None:
            writer.closed = True

    def _generate(self, number: int, requests: list[GenerationRequest], plans: list[Any]) -> None:
        edits = [self._plans.plan(plan) for plan in plans]
        rows = [replace(request, edit=edit) for request, edit in zip(requests, edits, strict=True)]
        self._answer(number, lambda: self._engine.generate(rows))

    def _represent(self, number: int, texts: Any, positions: Any) -> None:
        self._answer(number, lambda: self._engine.represent(texts, positions).numpy())

    def _score(self, number: int, requests: list[ScoreRequest], plans: list[Any]) -> None:
        edits = [self._plans.plan(plan) for plan in plans]
        rows = [replace(request, edit=edit) for request, edit in zip(requests, edits, strict=True)]
        self._answer(number, lambda: [scores.numpy() for scores in self._engine.score(rows)])

    def _answer(self, number: int, work: Callable[[], Any]) -> None:
        """Does work that blocks on a thread of its own: it waits for the engine's thread and costs no time itself."""

        def run() -> None:
            try:
                self._channel.send(("done", number, work()))
            except Exception as error:
                self._channel.send(("failed", number, _portable(error)))

        threading.Thread(target=run, name="alignez-call", daemon=True).start()


class _Writer:
    """A `ChunkWriter` that sends a request's chunks to the parent."""

    def __init__(self, number: int, channel: Channel, on_end: Callable[[], object]) -> None:
        self.closed = False
        self._number = number
        self._channel = channel
        self._on_end = on_end

    def put(self, chunk: StreamChunk) -> None:
        self._channel.send(
            ("chunk", self._number, chunk.text, chunk.token_ids, chunk.finish_reason, chunk.logprobs,
             chunk.prompt_tokens, chunk.queued_s)
        )  # fmt: skip
        if chunk.finish_reason is not None:
            self._on_end()

    def fail(self, error: BaseException) -> None:
        self._channel.send(("failed", self._number, _portable(error)))
        self._on_end()


def _portable(error: BaseException) -> AlignezError:
    """The error as one of ours, which can be pickled whatever has caused it."""
    return error if isinstance(error, AlignezError) else AlignezError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
