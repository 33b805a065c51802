"""A plan as `VLLMEngine` sends it to the workers, and what a worker makes of several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignez_core.engines.plan_codec import EncodedPlan

#: A slot and the plan to write into it. vLLM's transport turns tuples into lists.
PlanMessage = tuple[int, EncodedPlan]


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
    plans = [EncodedPlan(*encoded) for _, encoded in messages]
    layers = sorted({layer for plan in plans for layer in plan.layers})
    index = {layer: i for i, layer in enumerate(layers)}
    shape = (len(layers), rank, len(plans))
    width = plans[0].hidden_size
    u, v, c = np.zeros((*shape, width), "f4"), np.zeros((*shape, width), "f4"), np.zeros(shape, "f4")
    for at, plan in enumerate(plans):
        rows = [index[layer] for layer in plan.layers]
        u[rows, : plan.rank, at], v[rows, : plan.rank, at], c[rows, : plan.rank, at] = plan.tables()
    return {
        layer: LayerTables(torch.from_numpy(u[i]), torch.from_numpy(v[i]), torch.from_numpy(c[i]))
        for layer, i in index.items()
    }
