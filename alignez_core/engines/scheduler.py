"""The engine's thread: requests join and leave the running batch between two steps.

One turn of the loop: drop cancelled rows, run one piece of other work on the model (`represent`, `score`), let a
bounded batch of waiting requests in, then give every live row one token.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from alignez_core.engines.base import FinishReason, StreamChunk, TokenLogprob
from alignez_core.engines.rows import Row, alternatives
from alignez_core.engines.runner import SlotRunner
from alignez_core.engines.sampling import BatchSampler
from alignez_core.engines.streams import StreamWriter, deliver
from alignez_core.errors import AlignezError, EngineClosed, EngineOverloaded, OutOfMemory

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is: rows in slots, requests waiting, tokens generated and steps since the start."""

    running: int
    waiting: int
    max_slots: int
    generated_tokens: int
    steps: int


@dataclass(frozen=True)
class _Drawn:
    """One token per row, and the log-probabilities of the rows that asked for them, by row."""

    tokens: list[int]
    logprobs: dict[int, TokenLogprob]


class Scheduler:
    """Owns the thread that runs the model.

    Args:
        runner: the model; only this thread touches it.
        max_waiting: requests that may wait when every slot is taken; a bounded submission beyond is refused.
        prefill_tokens: tokens, padding included, of one batch of joining requests; it bounds how long running
            streams pause for newcomers. One longer prompt still joins, alone.
    """

    def __init__(
        self, runner: SlotRunner, device: torch.device, max_waiting: int = 1024, prefill_tokens: int = 4096
    ) -> None:
        self._runner = runner
        self._device = device
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._work: deque[Callable[[], None]] = deque()
        self._closed = False
        self._rows: list[Row] = []
        self._taken = 0  # rows out of the queue and not yet gone: joining or in a slot; the engine's thread counts
        self._sampler: BatchSampler | None = None
        self._generated = 0
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="alignez-engine", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row], *, bounded: bool) -> None:
        """Queues rows, in order. Raises: EngineOverloaded: bounded and the queue is full. EngineClosed."""
        with self._changed:
            self._require_open()
            free = self._runner.max_slots - self._taken
            if bounded and len(self._waiting) >= self._max_waiting + free:
                raise EngineOverloaded(len(self._waiting), self._max_waiting)
            self._waiting.extend(rows)
            self._changed.notify()

    def between_steps(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` on the engine's thread between two steps. Raises: EngineClosed."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # whatever it is belongs to the caller who waits for it
                future.set_exception(_as_engine_error(error))

        def closed() -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineClosed("the engine was closed"))

        with self._changed:
            self._require_open()
            self._work.append(lambda: closed() if self._closed else run())
            self._changed.notify()
        return future

    def load(self) -> EngineLoad:
        """A snapshot; safe from any thread."""
        with self._changed:
            waiting = len(self._waiting)
        return EngineLoad(self._runner.rows, waiting, self._runner.max_slots, self._generated, self._steps)

    def close(self) -> None:
        """Ends every row with `EngineClosed` and the thread with them. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed")

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._turn()
            except Exception as error:  # the running rows are lost; the engine goes on with the next
                rows, self._rows, self._sampler = self._rows, [], None
                self._taken = 0
                self._runner.reset()
                self._fail(rows, error)
        self._end()

    def _turn(self) -> None:
        self._drop_cancelled()
        if self._work:
            self._work.popleft()()
        joining = self._next_batch()
        if joining:
            self._join(joining)
        if self._rows:
            self._step()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._rows or self._waiting or self._work)
            return not self._closed

    def _drop_cancelled(self) -> None:
        with self._changed:
            if any(row.sink.cancelled for row in self._waiting):
                self._waiting = deque(row for row in self._waiting if not row.sink.cancelled)
        self._leave([i for i, row in enumerate(self._rows) if row.sink.cancelled])

    def _next_batch(self) -> list[Row]:
        """The requests to let in now, first come first served."""
        batch: list[Row] = []
        longest = 0
        with self._changed:
            while self._waiting and self._runner.rows + len(batch) < self._runner.max_slots:
                longest = max(longest, len(self._waiting[0].prompt))
                if batch and longest * (len(batch) + 1) > self._prefill_tokens:
                    break
                batch.append(self._waiting.popleft())
            self._taken += len(batch)
        return batch

    def _join(self, rows: list[Row]) -> None:
        first = self._runner.rows
        try:
            sampler = BatchSampler([row.params for row in rows], [len(row.generated) for row in rows], self._device)
            logits = self._runner.prefill([row.prompt for row in rows], [row.edit for row in rows])
            drawn = _draw(rows, logits, sampler)
        except Exception as error:  # only the rows of this prefill are lost; the others go on
            self._runner.remove(range(first, self._runner.rows))  # the last ones, so nobody moves
            self._taken -= len(rows)
            self._fail(rows, error)
            return
        self._rows.extend(rows)
        self._sampler = None
        self._hand_out(first, drawn)

    def _step(self) -> None:
        logits = self._runner.decode([row.generated[-1] for row in self._rows])
        if self._sampler is None:
            drawn = [len(row.generated) for row in self._rows]
            self._sampler = BatchSampler([row.params for row in self._rows], drawn, self._device)
        self._hand_out(0, _draw(self._rows, logits, self._sampler))

    def _hand_out(self, first: int, drawn: _Drawn) -> None:
        """Gives the rows from `first` on their tokens, and lets finished rows leave."""
        rows = self._rows[first:]
        chunks: list[tuple[StreamWriter, StreamChunk]] = []
        finished: list[tuple[int, FinishReason]] = []
        for i, (row, token) in enumerate(zip(rows, drawn.tokens, strict=True)):
            reason, chunk = row.accept(token, drawn.logprobs.get(i))
            if chunk is not None and row.writer is not None:
                chunks.append((row.writer, chunk))
            if reason is not None:
                finished.append((first + i, reason))
        self._steps += 1
        self._generated += len(rows)
        # The slots are free before the results are out: whoever reads the last token finds the engine without the row.
        ended = [(self._rows[i], reason) for i, reason in finished]
        self._leave([i for i, _ in finished])
        deliver(chunks)
        for row, reason in ended:
            row.sink.finish(row.completion(reason))

    def _leave(self, indices: list[int]) -> None:
        if not indices:
            return
        moves = self._runner.remove(indices)
        for source, target in moves:
            self._rows[target] = self._rows[source]
        del self._rows[self._runner.rows :]
        self._taken -= len(indices)
        self._sampler = None

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        failure = _as_engine_error(error)
        if not isinstance(error, AlignezError):
            _log.exception("a step of %d requests failed", len(rows))
        for row in rows:
            row.sink.fail(failure)

    def _end(self) -> None:
        with self._changed:
            rows = [*self._rows, *self._waiting]
            self._waiting.clear()
            work, self._work = list(self._work), deque()
        self._rows = []
        for row in rows:
            row.sink.fail(EngineClosed("the engine was closed"))
        for item in work:
            item()
        self._runner.close()


def _draw(rows: Sequence[Row], logits: Tensor, sampler: BatchSampler) -> _Drawn:
    """Samples a token for each row; changes nothing but the sampler's count."""
    sampled = sampler.sample(logits)
    tokens = sampled.tolist()
    asked = [i for i, row in enumerate(rows) if row.request.logprobs is not None]
    if not asked:
        return _Drawn(tokens, {})
    count = max(rows[i].request.logprobs or 0 for i in asked)
    found = alternatives(logits[asked], sampled[asked], count)
    return _Drawn(tokens, {i: rows[i].token_logprob(tokens[i], found, k) for k, i in enumerate(asked)})


def _as_engine_error(error: Exception) -> AlignezError:
    """An error of ours that says what happened, with the original as its cause."""
    if isinstance(error, AlignezError):
        return error
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        failure: AlignezError = OutOfMemory("the device has no memory left for these requests")
    else:
        failure = AlignezError(f"the engine failed in a step: {type(error).__name__}: {text}")
    failure.__cause__ = error
    return failure
