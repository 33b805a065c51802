"""Inputs of a decode step in one copy to the device: each row's token, position, and whether it is edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StepInputs:
    """(B,) int64 each, on the device; `edited` is 0 or 1. Overwritten by the next step."""

    tokens: Tensor
    positions: Tensor
    edited: Tensor


class InputBuffer:
    """The inputs of a step at a fixed address, as CUDA graphs want them.

    On a GPU the copy is from pinned memory and waits for nothing. The host may write the next step's inputs only once
    the copy is done; it is, because in between the engine reads the tokens that the step has led to.
    """

    @torch.inference_mode()  # like all other tensors of a step: the compiler tells the two kinds apart
    def __init__(self, max_slots: int, device: torch.device) -> None:
        on_cpu = device.type == "cpu"
        self._host = torch.zeros(3, max_slots, dtype=torch.long, pin_memory=device.type == "cuda")
        self._array = self._host.numpy()
        self._device = self._host if on_cpu else torch.zeros(3, max_slots, dtype=torch.long, device=device)

    def load(self, tokens: Sequence[int], positions: np.ndarray, edited: np.ndarray, rows: int) -> StepInputs:
        """The inputs of `rows` rows; those beyond the given ones are token 0 at position 0, without an edit."""
        live = len(positions)
        self._array[:, live:rows] = 0
        for target, source in zip(self._array, (tokens, positions, edited), strict=True):
            target[:live] = source
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)
        return StepInputs(*self._device[:, :rows])
