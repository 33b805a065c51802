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
_MOST = 32


class SharedPasses:
    """Runs `Engine.represent` for callers in many threads, one pass at a time, each for all who wait by then.

    A request alone is not held back: nobody waits for company. In company the second pass takes everybody who came
    during the first. An engine gives each text the same representation alone and in a batch, up to rounding.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: list[tuple[Prompt, Future[Tensor]]] = []
        self._running = False

    def represent(self, prompt: Prompt) -> Tensor:
        """(1, L, D) MLP outputs of every layer at the prompt's last token; blocks.

        Raises: what `Engine.represent` raises for this prompt.
        """
        mine: Future[Tensor] = Future()
        with self._lock:
            self._waiting.append((prompt, mine))
            leads, self._running = not self._running, True
        while leads:
            # The first to come runs the passes of those who come meanwhile, at most until nobody waits.
            with self._lock:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                if not batch:
                    self._running = False
                    break
            self._run(batch)
        return mine.result()

    def _run(self, batch: list[tuple[Prompt, Future[Tensor]]]) -> None:
        try:
            rows = self._engine.represent([prompt for prompt, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:  # somebody's query is at fault (too long, say), and only theirs
                self._run([one])
            return
        for i, (_, future) in enumerate(batch):
            future.set_result(rows[i : i + 1])
