"""Edit of one vLLM request: the message between `VLLMEngine` and the plugin in the worker.

It travels as `SamplingParams.extra_args["alignez"]`, plain JSON types only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignez_core.editing import EditPlan

KEY = "alignez"


@dataclass(frozen=True)
class RowEdit:
    """Slot and edited positions of one request.

    Args:
        slot: of the device table, ≥ 1; slot 0, which changes nothing, is that of rows without an edit.
        first: position of the first edited token.
        end: position after the last edited one.
        sha256: the plan's content hash; it names the edit in the prefix cache.
    """

    slot: int
    first: int
    end: int
    sha256: str

    @classmethod
    def of(cls, plan: EditPlan, slot: int, prompt_length: int) -> RowEdit:
        """The plan's position rule for a prompt of this many tokens."""
        return cls(slot, *plan.span(prompt_length), plan.sha256)

    def touches(self, end: int) -> bool:
        """True if keys and values of positions before `end` can depend on the edit."""
        return end > self.first


@dataclass(frozen=True)
class RowCapture:
    """Capture of MLP outputs: their mean over positions start ≤ t < end, kept under `key` until fetched."""

    key: str
    start: int
    end: int


def to_extra_args(edit: RowEdit | None = None, capture: RowCapture | None = None) -> dict[str, Any] | None:
    """The request's `extra_args`; None when there is nothing to say."""
    message = {}
    if edit is not None:
        message["edit"] = asdict(edit)
    if capture is not None:
        message["capture"] = asdict(capture)
    return {KEY: message} if message else None


def edit_of(extra_args: Mapping[str, Any] | None) -> RowEdit | None:
    """The request's edit. A malformed message counts as none: an exception in the worker would end the engine."""
    message = _part(extra_args, "edit")
    try:
        return None if message is None else RowEdit(**message)
    except TypeError:
        return None


def capture_of(extra_args: Mapping[str, Any] | None) -> RowCapture | None:
    """Capture that the request asks for; see `edit_of`."""
    message = _part(extra_args, "capture")
    try:
        return None if message is None else RowCapture(**message)
    except TypeError:
        return None


def _part(extra_args: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    if not extra_args:
        return None
    message = extra_args.get(KEY)
    part = message.get(name) if isinstance(message, Mapping) else None
    return part if isinstance(part, Mapping) else None


def fill_slots(
    out: npt.NDArray[np.int64],
    edits: Sequence[RowEdit | None],
    computed: Sequence[int],
    scheduled: Sequence[int],
) -> bool:
    """Writes the slot of every token of one step; returns whether any token is edited.

    The rule reads absolute positions, so it holds for a prefill in chunks, for decode, and for the recomputation of a
    preempted request.

    Args:
        out: (T,) T ≥ sum(scheduled), zero before; the requests' tokens follow each other in order.
        edits: per request. computed: tokens of it in the cache before this step. scheduled: its tokens in this step.
    """
    at = 0
    any_edited = False
    for edit, start, count in zip(edits, computed, scheduled, strict=True):
        if edit is not None:
            low, high = max(edit.first - start, 0), min(edit.end - start, count)
            if low < high:
                out[at + low : at + high] = edit.slot
                any_edited = True
        at += count
    return any_edited
