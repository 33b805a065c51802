"""Represents the queries of many requests in few forward passes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from alignez_core.engines.base import Engine

Prompt = str | Sequence[int]

#: Queries of one pass; running answers wait for a pass, so it must not be long.
MAX_QUERIES = 32


class SharedPasses:
    """Runs `Engine.represent` for callers in many threads, one pass at a time, each for all who wait by then.

    A request alone is never delayed. The second pass takes all requests that arrived during the first. A caller that
    waits when a pass ends runs the next one, and returns with its own result: a caller runs only passes that it needs
    itself. An engine gives each text the same representation alone and in a batch, up to rounding.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Guards the two fields below; told of the end of each pass.
        self._turn = threading.Condition()
        self._waiting: list[tuple[Prompt, Future[Tensor]]] = []
        self._running = False

    @property
    def waiting(self) -> int:
        """Number of queries that no pass has taken yet."""
        with self._turn:
            return len(self._waiting)

    def represent(self, prompt: Prompt) -> Tensor:
        """(1, L, D) MLP outputs of every layer at the prompt's last token; blocks.

        Raises: what `Engine.represent` raises for this prompt.
        """
        mine: Future[Tensor] = Future()
        with self._turn:
            self._waiting.append((prompt, mine))
        while True:
            with self._turn:
                # A condition and not a lock around the pass: whose result is there must not queue for the next turn.
                self._turn.wait_for(lambda: mine.done() or not self._running)
                if mine.done():
                    return mine.result()
                # Oldest first, so this caller's own query is in one of the next passes, whoever keeps coming.
                batch, self._waiting = self._waiting[:MAX_QUERIES], self._waiting[MAX_QUERIES:]
                self._running = True
            try:
                self._run(batch)
            finally:
                with self._turn:
                    self._running = False
                    self._turn.notify_all()

    def _run(self, batch: list[tuple[Prompt, Future[Tensor]]]) -> None:
        try:
            rows = self._engine.represent([prompt for prompt, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:  # one query is at fault (too long, say), and only it fails
                self._run([one])
            return
        for i, (_, future) in enumerate(batch):
            future.set_result(rows[i : i + 1])
