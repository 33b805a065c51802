"""The edit inside vLLM's model: device tables of plans, and MLPs whose outputs go through them.

Shapes: T tokens of one step, D hidden size, R rank of the tables, S slots beside slot 0, which changes nothing.

In a compiled graph the edit is a gather and two small products on every token, whichever slots the tokens name: the
same graph and the same cost for no profile, one, or hundreds. All buffers keep their addresses, so CUDA graphs hold.
Outside a graph (eager mode) only the edited tokens are touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignez_core.editing import gathered_edit
from alignez_core.engines.vllm.device.row_edit import RowCapture, RowEdit, fill_slots
from alignez_core.engines.vllm.plans.message import LayerTables


class StepState:
    """State of the running step for its MLPs: the slot of every token, and the captures asked for.

    Args:
        max_tokens: tokens of a step at most (`max_num_batched_tokens`).
        slots: S.
    """

    def __init__(self, max_tokens: int, slots: int, device: torch.device) -> None:
        self.slots = slots
        self.token_slots = torch.zeros(max_tokens, dtype=torch.long, device=device)
        pinned = device.type == "cuda"
        self._staged = torch.zeros(max_tokens, dtype=torch.long, pin_memory=pinned)
        self._used = 0
        self._device = device
        self.edited: Tensor | None = None  # (E,) indices of the edited tokens, for eager mode
        self.captures: list[_Capture] = []
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._seen: dict[str, int] = {}

    def begin(
        self,
        edits: Sequence[RowEdit | None],
        captures: Sequence[RowCapture | None],
        computed: Sequence[int],
        scheduled: Sequence[int],
    ) -> None:
        """Sets up one step; the arguments are per request, in the order of their tokens. Never raises."""
        total = int(sum(scheduled))
        staged = self._staged.numpy()
        staged[: max(total, self._used)] = 0
        known = [edit if edit is not None and 0 < edit.slot <= self.slots else None for edit in edits]
        edited = fill_slots(staged, known, computed, scheduled)
        changed = max(total, self._used) if edited or self._used else 0
        if changed:
            self.token_slots[:changed].copy_(self._staged[:changed], non_blocking=True)
        self._used = total if edited else 0
        self.edited = torch.from_numpy(np.flatnonzero(staged[:total])).to(self._device) if edited else None
        self.captures = []
        at = 0
        for capture, start, count in zip(captures, computed, scheduled, strict=True):
            if capture is not None:
                low, high = max(capture.start - start, 0), min(capture.end - start, count)
                if low < high:
                    self.captures.append(_Capture(capture.key, at + low, at + high))
                    self._seen[capture.key] = self._seen.get(capture.key, 0) + high - low
            at += count

    def capture(self, layer: int, output: Tensor) -> None:
        """Adds one layer's (T, D) outputs to the sums of those who asked."""
        for asked in self.captures:
            rows = output[asked.low : asked.high].float().sum(0)
            sums = self._sums.setdefault(asked.key, {})
            sums[layer] = sums[layer] + rows if layer in sums else rows

    def take(self, key: str) -> tuple[list[int], Tensor] | None:
        """(layers, (layers, D) float32 means) captured under a key, which are then forgotten; None: nothing was."""
        sums, seen = self._sums.pop(key, None), self._seen.pop(key, 0)
        if not sums or not seen:
            return None
        layers = sorted(sums)
        return layers, torch.stack([sums[layer] for layer in layers]).cpu() / seen


class _Capture:
    __slots__ = ("high", "key", "low")

    def __init__(self, key: str, low: int, high: int) -> None:
        self.key, self.low, self.high = key, low, high


class EditedMlp:
    """Mixed into the class of a model's edit site, an MLP or the norm behind it: its output, captured and edited.

    `install` turns an existing module into one; the model's own code neither knows nor changes.
    """

    _alignez_layer: int
    _alignez_step: StepState
    edit_u: Tensor  # (R, S + 1, D) float32
    edit_v: Tensor  # (R, S + 1, D) float32
    edit_c: Tensor  # (R, S + 1) float32
    edit_token_slots: Tensor  # (max T,) int64, the step's

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The MLP's output (T, D), edited."""
        output: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            slots = self.edit_token_slots[: output.shape[0]]
            edited = self._edit(output, slots)
            # Selected, not added to: a row without an edit must keep every bit.
            return torch.where((slots > 0).unsqueeze(1), edited, output)
        step = self._alignez_step
        if step.captures:
            step.capture(self._alignez_layer, output)
        if step.edited is None:
            return output
        rows = step.edited
        return output.index_copy(0, rows, self._edit(output[rows], self.edit_token_slots[rows]))

    def _edit(self, output: Tensor, slots: Tensor) -> Tensor:
        """(T, D) outputs, each token edited by the plan in its slot (T,); float32 inside."""
        return gathered_edit(output.float(), self.edit_u, self.edit_v, self.edit_c, slots).to(output.dtype)

    def load_plans(self, slots: Tensor, tables: LayerTables | None) -> None:
        """Writes this layer's rows of B plans into B different slots, (B,) int64; None empties them."""
        for name in ("u", "v", "c"):
            buffer = getattr(self, f"edit_{name}")
            if tables is None:
                buffer.index_fill_(1, slots, 0.0)
            else:
                buffer.index_copy_(1, slots, getattr(tables, name).to(buffer.device))


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def install(mlp: nn.Module, layer: int, step: StepState, rank: int, hidden_size: int) -> None:
    """Makes `mlp` an `EditedMlp` of its own class, with empty tables on the step's device."""
    kind = type(mlp)
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Edited{kind.__name__}", (EditedMlp, kind), {})
    mlp.__class__ = _CLASSES[kind]
    device = step.token_slots.device
    wide = (rank, step.slots + 1, hidden_size)
    for name, shape in (("edit_u", wide), ("edit_v", wide), ("edit_c", wide[:2])):
        mlp.register_buffer(name, torch.zeros(shape, dtype=torch.float32, device=device), persistent=False)
    mlp.register_buffer("edit_token_slots", step.token_slots, persistent=False)
    mlp._alignez_layer = layer  # type: ignore[assignment]
    mlp._alignez_step = step  # type: ignore[assignment]
