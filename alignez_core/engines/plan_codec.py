"""Plans as plain values, for messages to other processes: to the engine's own and to vLLM's workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from alignez_core.editing import EditPlan
from alignez_core.spec.limits import Positions

FloatArray = npt.NDArray[np.float32]


class EncodedPlan(NamedTuple):
    """The numbers of a plan: L layers, R, D, and the bytes of U, V (L, R, D) and c (L, R), float32 little-endian."""

    layers: Sequence[int]
    rank: int
    hidden_size: int
    u: bytes
    v: bytes
    c: bytes

    def tables(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """U, V and c as read-only arrays over the message's bytes."""
        shape = (len(self.layers), self.rank, self.hidden_size)
        u, v = (np.frombuffer(raw, "<f4").reshape(shape) for raw in (self.u, self.v))
        return u, v, np.frombuffer(self.c, "<f4").reshape(shape[:2])


def encode(plan: EditPlan) -> EncodedPlan:
    """The plan's numbers; its position rule travels beside them."""
    u, v, c = (table.numpy().astype("<f4", copy=False).tobytes() for table in (plan.U, plan.V, plan.c))
    return EncodedPlan(list(plan.layers), plan.rank, plan.hidden_size, u, v, c)


def decode(encoded: EncodedPlan, steps: int | None, positions: Positions) -> EditPlan:
    """The plan again, with memory of its own."""
    u, v, c = (torch.from_numpy(table.copy()) for table in encoded.tables())
    return EditPlan(tuple(encoded.layers), u, v, c, steps, positions)
