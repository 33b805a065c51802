"""Methods that `VLLMEngine` calls on every worker (`collective_rpc`): they load plans and hand out captured outputs.

vLLM mixes this class into its worker. Everything that crosses is bytes and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class AlignezWorker:
    """Mixin of vLLM's worker; names are prefixed because they share the worker's namespace."""

    model_runner: Any

    def alignez_load_plan(
        self, slot: int, layers: Sequence[int], rank: int, width: int, u: bytes, v: bytes, c: bytes
    ) -> None:
        """Writes a plan (L, R, D), (L, R, D), (L, R), float32 little-endian, into a slot of this worker's layers."""
        shape = (len(layers), rank)
        tables = [_tensor(u, (*shape, width)), _tensor(v, (*shape, width)), _tensor(c, shape)]
        index = {layer: i for i, layer in enumerate(layers)}
        for layer, mlp in self.model_runner.get_model().alignez_mlps().items():
            i = index.get(layer)
            mlp.load_plan(slot, *(None if i is None else table[i] for table in tables))

    def alignez_take_captured(self, keys: Sequence[str]) -> list[list[Any] | None]:
        """Per key [layers, width, bytes of (layers, width) float32], or None; what is taken is forgotten."""
        step = self.model_runner.get_model().alignez
        taken: list[list[Any] | None] = []
        for key in keys:
            found = step.take(key)
            if found is None:
                taken.append(None)
            else:
                layers, rows = found
                taken.append([layers, rows.shape[1], rows.numpy().astype("<f4").tobytes()])
        return taken


def _tensor(raw: bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32).reshape(shape))
