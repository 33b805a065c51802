"""MLP outputs that vLLM's workers captured while they ran texts, fetched for many texts in one message."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from alignez_core.engines.vllm.workers import Workers
from alignez_core.errors import AlignezError

T = TypeVar("T")

#: Maximum size of results that workers hold before they are fetched, and of one message.
_MOST_BYTES = 32 * 2**20


class Captures:
    """Captured MLP outputs that the workers keep under the keys of texts (`RowCapture`).

    Args:
        n_layers: L. hidden_size: D.
    """

    def __init__(self, workers: Workers, n_layers: int, hidden_size: int) -> None:
        self._workers = workers
        self._shape = (n_layers, hidden_size)

    def chunks(self, texts: Sequence[T]) -> Iterator[Sequence[T]]:
        """The texts in pieces whose outputs the workers may hold at once."""
        n_layers, width = self._shape
        most = max(1, _MOST_BYTES // (4 * n_layers * width))
        return (texts[at : at + most] for at in range(0, len(texts), most))

    async def take(self, keys: Sequence[str]) -> Tensor:
        """(N, L, D) float32 of N texts that have run; the workers then forget them.

        Raises: AlignezError: they did not capture every layer of every text.
        """
        out = torch.zeros(len(keys), *self._shape)
        got: list[set[int]] = [set() for _ in keys]
        for worker in await self._workers.call("alignez_take_captured", list(keys)):
            for i, found in enumerate(worker):
                if found is not None:
                    layers, width, raw = found
                    rows = np.frombuffer(raw, "<f4").astype(np.float32).reshape(len(layers), width)
                    out[i, layers] = torch.from_numpy(rows)
                    got[i].update(layers)
        least = min(map(len, got))
        if least != self._shape[0]:
            raise AlignezError(f"vLLM's workers captured {least} of {self._shape[0]} layers")
        return out

    async def forget(self, keys: Sequence[str]) -> None:
        """Has the workers drop what they hold of texts that failed. Never raises: there is an error already."""
        with contextlib.suppress(Exception):
            await self._workers.call("alignez_take_captured", list(keys))
