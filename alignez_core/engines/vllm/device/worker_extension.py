"""Methods that `VLLMEngine` calls on every worker (`collective_rpc`): they load plans and hand out captured outputs.

vLLM mixes this class into its worker. Everything that crosses is bytes and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from alignez_core.engines.vllm.plans.message import PlanMessage, tables_of


class AlignezWorker:
    """Mixin of vLLM's worker; names are prefixed because they share the worker's namespace."""

    model_runner: Any

    def alignez_load_plans(self, plans: Sequence[PlanMessage]) -> None:
        """Writes plans into slots of this worker's layers, all at once; the slots are different ones."""
        mlps = self.model_runner.get_model().alignez_mlps()
        first = next(iter(mlps.values()), None)
        if first is None:
            return
        tables = tables_of(plans, first.edit_u.shape[0])
        slots = torch.tensor([message[0] for message in plans], device=first.edit_u.device)
        for layer, mlp in mlps.items():
            mlp.load_plans(slots, tables.get(layer))

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
