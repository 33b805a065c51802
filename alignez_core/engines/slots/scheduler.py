"""The engine's thread: requests join and leave the running batch between two steps.

One turn of the loop: drop cancelled rows, run one piece of other work on the model (`represent`, `score`), let a
bounded batch of waiting requests in, prefill one piece of a long prompt, then give every live row one token.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from alignez_core.engines.base import FinishReason, StreamChunk, TokenLogprob
from alignez_core.engines.common.admission import FairQueue, may_wait
from alignez_core.engines.common.sampling import BatchSampler
from alignez_core.engines.common.streams import ChunkWriter, deliver
from alignez_core.engines.slots.rows import Row, alternatives
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.errors import AlignezError, EngineClosed, EngineOverloaded, OutOfMemory

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class EngineLoad:
    """Load of an engine.

    Attributes:
        running: requests in slots. waiting: requests in the queue. generated_tokens, steps: since the start.
    """

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
        max_waiting: requests that may wait when every slot is taken; a bounded submission beyond is refused. Full, the
            queue still takes one request of a group that has none waiting, or one caller could shut all others out;
            0 is no queue at all.
        prefill_tokens: tokens, padding included, of one batch of joining requests; it bounds how long running
            streams pause for newcomers.
        prefill_piece: chunk of a chunked prefill, in tokens. A longer prompt is prefilled one chunk a turn, one such
            prompt at a time, so that running streams never wait for all of it and short requests overtake it.
        max_cache_tokens: limit on prompt and new tokens of all running requests together; a request beyond it waits.
            None: the slots are the only limit.
        idle_s: seconds without work after which the memory of the slots is freed.
    """

    def __init__(
        self,
        runner: SlotRunner,
        device: torch.device,
        max_waiting: int = 1024,
        prefill_tokens: int = 4096,
        max_cache_tokens: int | None = None,
        prefill_piece: int = 512,
        idle_s: float = 10.0,
    ) -> None:
        self._runner = runner
        self._device = device
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._max_cache_tokens = max_cache_tokens
        self._prefill_piece = prefill_piece
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._waiting: FairQueue[Row] = FairQueue()
        self._work: deque[Callable[[], None]] = deque()
        self._closed = False
        self._rows: list[Row] = []
        self._long: Row | None = None  # the row whose prompt is being prefilled in pieces
        self._taken = 0  # rows out of the queue and not yet gone: joining or in a slot; the engine's thread counts
        self._sampler: BatchSampler | None = None
        self._generated = 0
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="alignez-engine", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row], *, bounded: bool) -> None:
        """Queues rows, in order; none alone is over `max_cache_tokens` (`checks`), or it would wait for ever.

        Raises: EngineOverloaded: bounded and the queue is full. EngineClosed.
        """
        with self._changed:
            self._require_open()
            if bounded and not self._has_room(rows[0].request.group):
                raise EngineOverloaded(len(self._waiting), self._max_waiting)
            self._waiting.add(rows)
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
        return EngineLoad(self._taken, waiting, self._runner.max_slots, self._generated, self._steps)

    def close(self) -> None:
        """Ends every row with `EngineClosed` and the thread with them. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _has_room(self, group: str | None) -> bool:
        live = len(self._waiting) + self._taken
        waits = self._waiting.waiting_of(group) > 0
        return may_wait(live, self._runner.max_slots, self._max_waiting, waits)

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed")

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._turn()
            except Exception as error:  # the running rows are lost; the engine goes on with the next
                rows = self._let_in()
                self._rows, self._long, self._sampler, self._taken = [], None, None, 0
                self._runner.reset()
                self._fail(rows, error)
        self._end()

    def _turn(self) -> None:
        self._drop_cancelled()
        if self._work:
            self._work.popleft()()
        joining = self._next_batch()
        if joining:
            self._join(joining, lambda: self._prefill(joining))
        long = self._long
        if long is not None:
            self._join([long], lambda: self._prefill_piece_of(long))
        if self._rows:
            self._step()

    def _wait_for_work(self) -> bool:
        def there_is() -> bool:
            return bool(self._closed or self._rows or self._long or self._waiting or self._work)

        with self._changed:
            woken = self._changed.wait_for(there_is, self._idle_s)
        if not woken:
            self._runner.reset()  # all slots are empty; this frees the memory of the last burst
            with self._changed:
                self._changed.wait_for(there_is)
        return not self._closed

    def _drop_cancelled(self) -> None:
        with self._changed:
            self._waiting.drop_cancelled()
        if self._long is not None and self._long.cancelled:
            self._long = None
            self._taken -= 1
            self._runner.drop_pieces()
        self._leave([i for i, row in enumerate(self._rows) if row.cancelled])

    def _next_batch(self) -> list[Row]:
        """The requests to let in now, as `FairQueue` has their turns."""
        batch: list[Row] = []
        longest = 0
        room = self._free_tokens()
        with self._changed:
            running = Counter(row.group for row in self._let_in()) if self._waiting else Counter()
            while self._taken < self._runner.max_slots:
                row = self._waiting.first(running, room, None if self._long is None else self._prefill_piece)
                if row is None:
                    break
                is_long = len(row.prompt) > self._prefill_piece
                if not is_long:
                    longest = max(longest, len(row.prompt))
                    if batch and longest * (len(batch) + 1) > self._prefill_tokens:
                        break
                self._waiting.remove(row, room)
                row.admit()
                running[row.group] += 1
                self._taken += 1
                room = None if room is None else room - row.cache_tokens
                if is_long:
                    self._long = row
                else:
                    batch.append(row)
        return batch

    def _free_tokens(self) -> int | None:
        if self._max_cache_tokens is None:
            return None
        return self._max_cache_tokens - sum(row.cache_tokens for row in self._let_in())

    def _let_in(self) -> list[Row]:
        return self._rows if self._long is None else [*self._rows, self._long]

    def _prefill(self, rows: list[Row]) -> Tensor:
        return self._runner.prefill([row.prompt for row in rows], [row.edit for row in rows])

    def _prefill_piece_of(self, row: Row) -> Tensor | None:
        try:
            logits = self._runner.prefill_piece(row.prompt, row.edit, self._prefill_piece)
        except Exception:
            self._runner.drop_pieces()
            self._long = None
            raise
        if logits is not None:
            self._long = None
        return logits

    def _join(self, rows: list[Row], prefill: Callable[[], Tensor | None]) -> None:
        """Makes rows live that `prefill` takes slots for; it returns None where a long prompt has more to come."""
        first = self._runner.rows
        try:
            logits = prefill()
            if logits is None:
                return
            sampler = BatchSampler([row.params for row in rows], [len(row.generated) for row in rows], self._device)
            drawn = _draw(rows, logits, sampler)
        except Exception as error:  # only the rows of this prefill are lost; the others go on
            self._runner.remove(range(first, self._runner.rows))  # the last ones, so no other row moves
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
        chunks: list[tuple[ChunkWriter, StreamChunk]] = []
        finished: list[tuple[int, FinishReason]] = []
        for i, (row, token) in enumerate(zip(rows, drawn.tokens, strict=True)):
            reason, chunk = row.accept(token, drawn.logprobs.get(i))
            if chunk is not None and row.writer is not None:
                chunks.append((row.writer, chunk))
            if reason is not None:
                finished.append((first + i, reason))
        self._steps += 1
        self._generated += len(rows)
        # Slots are freed before the results go out: a reader of the last token sees the engine without the row.
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
            rows = [*self._let_in(), *self._waiting.clear()]
            work, self._work = list(self._work), deque()
        self._rows, self._long, self._taken = [], None, 0
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
