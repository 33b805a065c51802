"""A plan as `VLLMEngine` sends it to the workers, and what a worker makes of several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alignez_core.editing import EditPlan

#: slot, layers, R, D, and the bytes of U, V (L, R, D) and c (L, R), float32 little-endian.
PlanMessage = tuple[int, Sequence[int], int, int, bytes, bytes, bytes]


def message_of(slot: int, plan: EditPlan) -> PlanMessage:
    """Message that makes a worker write the plan into the slot."""
    u, v, c = (table.numpy().astype("<f4", copy=False).tobytes() for table in (plan.U, plan.V, plan.c))
    return slot, list(plan.layers), plan.rank, plan.hidden_size, u, v, c


def bytes_of(plan: EditPlan) -> int:
    """About the size of its message."""
    return plan.U.nbytes + plan.V.nbytes + plan.c.nbytes


@dataclass(frozen=True, eq=False)
class LayerTables:
    """Several plans' rows of one layer; a plan of a lower rank, or without this layer, has zeros.

    Args:
        u: (R, B, D) float32. v: (R, B, D) float32. c: (R, B) float32; B plans, R of the device tables.
    """

    u: Tensor
    v: Tensor
    c: Tensor


def tables_of(messages: Sequence[PlanMessage], rank: int) -> dict[int, LayerTables]:
    """Layer → the rows of all plans, of the layers that any of them edits.

    Args:
        messages: B plans, of one width. rank: R, at least that of every plan.
    """
    layers = sorted({layer for message in messages for layer in message[1]})
    index = {layer: i for i, layer in enumerate(layers)}
    shape = (len(layers), rank, len(messages))
    width = messages[0][3]
    u, v, c = np.zeros((*shape, width), "f4"), np.zeros((*shape, width), "f4"), np.zeros(shape, "f4")
    for at, (_, named, own_rank, _, raw_u, raw_v, raw_c) in enumerate(messages):
        rows = [index[layer] for layer in named]
        u[rows, :own_rank, at] = _array(raw_u, (len(rows), own_rank, width))
        v[rows, :own_rank, at] = _array(raw_v, (len(rows), own_rank, width))
        c[rows, :own_rank, at] = _array(raw_c, (len(rows), own_rank))
    return {
        layer: LayerTables(torch.from_numpy(u[i]), torch.from_numpy(v[i]), torch.from_numpy(c[i]))
        for layer, i in index.items()
    }


def _array(raw: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.frombuffer(raw, "<f4").reshape(shape)
