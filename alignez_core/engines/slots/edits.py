"""The edits of the running rows as one table, so that a step costs the same for one plan or as many as rows.

Row b of layer l computes y = x + (x·U[l,b]ᵀ + c[l,b])·V[l,b]; ranks are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignez_core.editing import EditPlan, low_rank_edit
from alignez_core.engines.slots.step import MlpEdits


@dataclass(frozen=True)
class EditTables:
    """U, V (L, slots, R, D) and c (L, slots, R) as they are in memory; R is a power of two and at least 2."""

    u: Tensor
    v: Tensor
    c: Tensor


class SlotEdits:
    """U, V (layers, slots, R, D) and c (layers, slots, R), float32, beside which position each row's edit ends at.

    Args:
        n_layers, hidden_size: of the model. max_slots: rows at most.
    """

    def __init__(self, n_layers: int, hidden_size: int, max_slots: int, device: torch.device) -> None:
        self._shape = (n_layers, max_slots, hidden_size)
        self._device = device
        self._u = self._v = torch.empty(n_layers, 0, 0, hidden_size)
        self._c = torch.empty(n_layers, 0, 0)
        self._plans: list[EditPlan | None] = [None] * max_slots
        self._ends = np.zeros(max_slots, dtype=np.int64)
        self._layers: frozenset[int] | None = None
        self._rank = 0
        #: Another whenever the tables have moved in memory.
        self.version = 0

    def set(self, slot: int, plan: EditPlan | None, prompt_length: int) -> None:
        """Gives a slot its plan; None and identity plans leave the row untouched."""
        self._layers = None
        if plan is None or plan.is_identity:
            self._plans[slot], self._ends[slot] = None, 0
            return
        self._make_room(slot + 1, plan.rank)
        layers = list(plan.layers)
        for table, rows in ((self._u, plan.U), (self._v, plan.V), (self._c, plan.c)):
            table[:, slot] = 0.0
            table[layers, slot, : plan.rank] = rows.to(self._device)
        _, self._ends[slot] = plan.span(prompt_length)
        self._plans[slot] = plan

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return self._u.nbytes + self._v.nbytes + self._c.nbytes

    def clear(self) -> None:
        """Forgets all plans and gives all memory back."""
        n_layers, max_slots, hidden = self._shape
        self._u = self._v = torch.empty(n_layers, 0, 0, hidden)
        self._c = torch.empty(n_layers, 0, 0)
        self._plans = [None] * max_slots
        self._ends[:] = 0
        self._layers = None
        self.version += 1

    def move(self, source: int, target: int) -> None:
        """Gives one slot's plan to another; the source's stays until it is set again."""
        self._layers = None
        plan = self._plans[source]
        self._plans[target], self._ends[target] = plan, self._ends[source]
        if plan is not None:
            for table in (self._u, self._v, self._c):
                table[:, target] = table[:, source]

    def edited(self, positions: np.ndarray) -> np.ndarray:
        """(B,) bool: which of rows 0 to B−1 are edited at these positions (B,)."""
        edited: np.ndarray = self._ends[: len(positions)] > positions
        return edited

    def decode(self, edited: np.ndarray, mask: Tensor) -> MlpEdits | None:
        """The edits of rows 0 to B−1, or None when none of them is edited.

        Args:
            edited: (B,) what `edited` says. mask: the same on the device, (B,) of any dtype.
        """
        if not edited.any():
            return None
        rows = len(edited)
        self._make_room(rows, 0)  # rows without a plan behind the last one with a plan have a place in the tables too
        layers, rank = self._live(rows)
        chosen = None if edited.all() else mask[:, None] != 0
        tables = (self._u[:, :rows, :rank], self._v[:, :rows, :rank], self._c[:, :rows, :rank])
        return DecodeEdits(*tables, layers, chosen)

    def tables(self, rows: int) -> EditTables:
        """The whole tables, for a compiled step of so many rows."""
        # Never 1 wide, and never as many slots as rows: the compiler would make programs of their own for both.
        self._make_room(rows + 1, 2)
        return EditTables(self._u, self._v, self._c)

    def prefill(self, first: int, lengths: Sequence[int], *, to_the_end: bool = True) -> MlpEdits | None:
        """The edits of a right-padded prefill of slots first, first + 1, …, or None when no row is edited.

        Args:
            lengths: (B,) tokens of each row in this pass.
            to_the_end: whether they are the prompts' last ones; a piece from before is edited by plans of all positions
                only.
        """
        plans = self._plans[first : first + len(lengths)]
        at_end = [i for i, plan in enumerate(plans) if to_the_end and plan is not None and plan.positions == "answer"]
        throughout = [i for i, plan in enumerate(plans) if plan is not None and plan.positions == "all"]
        if not at_end and not throughout:
            return None
        layers, rank = self._live(first + len(lengths))
        parts = []
        for rows, everywhere in ((at_end, False), (throughout, True)):
            if rows:
                index = torch.tensor(rows, device=self._device)
                last = None if everywhere else torch.tensor([lengths[i] - 1 for i in rows], device=self._device)
                parts.append((index, last))
        end = first + len(lengths)
        tables = (self._u[:, first:end, :rank], self._v[:, first:end, :rank], self._c[:, first:end, :rank])
        return _PrefillEdits(*tables, layers, len(lengths), parts)

    def _live(self, rows: int) -> tuple[frozenset[int], int]:
        """Layers that any of the first rows edits, and their largest rank."""
        if self._layers is None:
            live = [plan for plan in self._plans[:rows] if plan is not None]
            self._layers = frozenset(layer for plan in live for layer in plan.layers)
            self._rank = max((plan.rank for plan in live), default=0)
        return self._layers, self._rank

    def _make_room(self, slots: int, rank: int) -> None:
        have = self._u.shape
        if slots <= have[1] and rank <= have[2]:
            return
        n_layers, max_slots, hidden = self._shape
        slots = max(have[1], min(max_slots + 1, 1 << (slots - 1).bit_length()))
        rank = max(have[2], 1 << max(rank - 1, 0).bit_length())
        u, v = (torch.zeros(n_layers, slots, rank, hidden, device=self._device) for _ in range(2))
        c = torch.zeros(n_layers, slots, rank, device=self._device)
        for new, old in ((u, self._u), (v, self._v), (c, self._c)):
            new[:, : have[1], : have[2]] = old
        self._u, self._v, self._c = u, v, c
        self.version += 1


class DecodeEdits:
    """The edits of a step's rows.

    Args:
        u, v: (L, B, R, D). c: (L, B, R). layers: that any row edits. edited: (B, 1) bool; None: all rows.
    """

    def __init__(self, u: Tensor, v: Tensor, c: Tensor, layers: Container[int], edited: Tensor | None) -> None:
        self._u, self._v, self._c = u, v, c
        self._layers = layers
        self._edited = edited

    def apply(self, layer: int, output: Tensor) -> Tensor | None:
        if layer not in self._layers:
            return None
        x = output.reshape(-1, output.shape[-1]).float()
        y = low_rank_edit(x.unsqueeze(1), self._u[layer], self._v[layer], self._c[layer]).squeeze(1)
        # Selected, not added to: x + 0 is not always x, and a row without an edit must keep every bit.
        if self._edited is not None:
            y = torch.where(self._edited, y, x)
        return y.to(output.dtype).view(output.shape)


class _PrefillEdits:
    def __init__(
        self,
        u: Tensor,
        v: Tensor,
        c: Tensor,
        layers: frozenset[int],
        rows: int,
        parts: list[tuple[Tensor, Tensor | None]],
    ) -> None:
        self._u, self._v, self._c = u, v, c
        self._layers = layers
        self._rows = rows
        self._parts = parts

    def apply(self, layer: int, output: Tensor) -> Tensor | None:
        if layer not in self._layers:
            return None
        out = output.clone().view(self._rows, -1, output.shape[-1])
        for rows, last in self._parts:
            x = out[rows] if last is None else out[rows, last].unsqueeze(1)
            y = low_rank_edit(x.float(), self._u[layer, rows], self._v[layer, rows], self._c[layer, rows])
            if last is None:
                out[rows] = y.to(out.dtype)
            else:
                out[rows, last] = y.squeeze(1).to(out.dtype)
        return out.view(output.shape)
