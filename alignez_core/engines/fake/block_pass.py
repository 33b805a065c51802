"""The fake engine's pass that halts between blocks: made-up states, real edits, logits over a small vocabulary.

The residual stream after a block is the sum of the MLP outputs so far, so that what is added, and what an edit
changes, is there in every later block and in the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import BlockStates
from alignez_core.errors import InvalidInput

#: Columns of the logits. Smaller than the vocabulary that `info` reports, which no test should pay for.
LOGITS = 32


class FakePass:
    """A `BlockPass` over states that are there already.

    Args:
        states: per request (t, L, D), each block's MLP output at the t positions that predict its answer.
        edits: per request a plan or None. hidden_size, n_layers: of the engine. copies: of `fork`.
    """

    site_scale = 1.0

    def __init__(
        self,
        states: Sequence[Tensor],
        edits: Sequence[EditPlan | None],
        n_layers: int,
        hidden_size: int,
        copies: int = 1,
    ) -> None:
        self.lengths = tuple(len(rows) for rows in states)
        empty = torch.zeros(0, n_layers, hidden_size)
        self._x = torch.cat([empty, *(_edited(rows, edit) for rows, edit in zip(states, edits, strict=True))])
        self._added = torch.zeros(len(self._x), hidden_size)
        self._layer = -1
        self._copies = copies

    def after(self, layer: int) -> BlockStates:
        if layer <= self._layer or layer >= self._x.shape[1]:
            raise InvalidInput("layer", f"{layer} does not come after block {self._layer}")
        self._layer = layer
        return BlockStates(self._x[:, layer].clone(), self._x[:, : layer + 1].sum(1) + self._added)

    def fork(self) -> None:
        self._x = self._x.repeat(self._copies, 1, 1)
        self._added = self._added.repeat(self._copies, 1)

    def add(self, delta: Tensor) -> None:
        self._added = self._added + delta

    def logits(self) -> Tensor:
        random = np.random.default_rng(0).standard_normal((self._x.shape[2], LOGITS))
        head = torch.from_numpy(random / self._x.shape[2] ** 0.5).float()
        return (self._x.sum(1) + self._added) @ head

    def close(self) -> None:
        """Nothing runs between two halts."""


def _edited(rows: Tensor, edit: EditPlan | None) -> Tensor:
    """(t, L, D) with an edit applied; the first position is the last prompt token."""
    if edit is None:
        return rows
    rows = rows.clone()
    _, end = edit.span(prompt_length=1)
    for layer in edit.layers:
        rows[:end, layer] = edit.apply(rows[:end, layer], layer)
    return rows
