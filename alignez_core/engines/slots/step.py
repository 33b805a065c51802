"""One forward pass, as the value that hooks and attention read: which rows, at which positions, with which edits.

A step travels in a context variable around its forward pass, because Hugging Face models hand nothing of ours down to
their MLP and attention modules. Nothing survives the pass, and threads do not see each other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling


class MlpEdits(Protocol):
    """The edits of one pass."""

    def apply(self, layer: int, output: Tensor) -> Tensor | None:
        """The edited MLP output of `layer`, in the shape given, or None when that layer is not edited."""
        ...


class MlpReader(Protocol):
    """Receiver of the MLP outputs of one pass."""

    def take(self, layer: int, output: Tensor) -> None: ...


class BlockVisitor(Protocol):
    """Reads and changes the residual stream between the blocks of one pass."""

    def visit(self, layer: int, residual: Tensor) -> Tensor | None:
        """Called after each block with (B, T, D); returns what takes its place, or None to leave it."""
        ...


@dataclass(frozen=True)
class Packing:
    """Several continuations of one prompt in one row: each sees the prompt and itself, at its own positions.

    Args:
        positions: (B, T) position of each token.
        owner: (B, T) 0 for the prompt's tokens, k for the k-th continuation's.
    """

    positions: Tensor
    owner: Tensor

    def hidden(self, window: int | None) -> Tensor:
        """(B, T, T) bool, the keys that each token must not see; window as for `Step.prefill_mask`."""
        length = self.owner.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=self.owner.device).triu(1)
        key, query = self.owner[:, None, :], self.owner[:, :, None]
        hidden = later | ((key != 0) & (key != query))
        if window is not None:
            hidden |= self.positions[:, :, None] - self.positions[:, None, :] >= window
        return hidden


@dataclass
class Step:
    """Inputs of one forward pass beside its tokens.

    Args:
        positions: (B,) position of each row's one new token; None in a prefill, whose rows all start at one position
            and are padded on the right, so plain causal attention is right for every real token.
        key_length: columns of the key/value view in a decode.
        uniform: every row fills the whole view, so no mask is needed.
        wanted: rows (M,) and positions (M,) of the M places whose logits are wanted; None: all of them.
        edits: None when no row is edited in this pass.
        reader: receives every layer's MLP output.
        visitor: sees the residual stream after every block.
        packing: how continuations share the rows of a prefill; None: a row is one text.
        start: position of a prefill's first tokens; above 0 in a later piece of a prompt that is prefilled in pieces.
    """

    positions: Tensor | None = None
    key_length: int = 0
    uniform: bool = True
    wanted: tuple[Tensor, Tensor] | None = None
    edits: MlpEdits | None = None
    reader: MlpReader | None = None
    visitor: BlockVisitor | None = None
    packing: Packing | None = None
    start: int = 0
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def decode_mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """(B, 1, 1, K) additive mask of the keys each row's new token sees, or None when it sees all of them.

        Args:
            window: the layer's sliding window in tokens, the new one included; None: unlimited.
        """
        # Not in a trace, where the length is a variable and the question would make two programs of one.
        if window is not None and not is_dynamo_compiling() and self.key_length <= window:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make_decode_mask(window, dtype)
        return self._masks[window]

    def prefill_mask(self, window: int | None, length: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """(1, 1, T, start + T) additive mask of T tokens from `start` on, or None when plain causal attention does.

        With `packing` (B, 1, T, T).

        Args:
            window: the layer's sliding window in tokens, the token itself included; None: unlimited.
        """
        if self.packing is not None:
            if window not in self._masks:
                self._masks[window] = _additive(self.packing.hidden(window), dtype)[:, None]
            return self._masks[window]
        end = self.start + length
        if window is not None and end <= window:
            window = None
        if window is None and self.start == 0:
            return None
        if window not in self._masks:
            column = torch.arange(end, device=device)
            distance = column[self.start :, None] - column[None, :]
            hidden = distance < 0
            if window is not None:
                hidden |= distance >= window
            self._masks[window] = _additive(hidden, dtype)[None, None]
        return self._masks[window]

    def _make_decode_mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if self.positions is None or (self.uniform and window is None):
            return None
        column = torch.arange(self.key_length, device=self.positions.device)
        position = self.positions[:, None]
        hidden = column > position
        if window is not None:
            hidden |= column <= position - window
        return _additive(hidden, dtype)[:, None, None]


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


_STEP: ContextVar[Step | None] = ContextVar("alignez_step", default=None)


def current_step() -> Step | None:
    """The step whose forward pass is running in this thread, or is being traced for the compiler."""
    if is_dynamo_compiling():
        return _traced.step
    return _STEP.get()


@contextmanager
def running(step: Step) -> Iterator[None]:
    """Makes `step` the current one for the forward pass inside."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


class _Traced:
    """Holds the step while torch traces a forward pass: torch 2.13 does not trace the setting of a `ContextVar`.

    Only the tracer sees a step here. In compiled code it is a constant that is gone, and the uncompiled passes of other
    threads read their own.
    """

    step: Step | None = None


_traced = _Traced()


def begin_traced(step: Step) -> None:
    """`running` for code that `torch.compile` traces; without effect outside it."""
    _traced.step = step


def end_traced() -> None:
    """Ends what `begin_traced` began."""
    _traced.step = None
