"""The position rule as vLLM's worker applies it: by absolute position, however a request is cut into steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignez_core.editing import EditPlan
from alignez_core.engines.vllm.device.row_edit import (
    RowCapture,
    RowEdit,
    capture_of,
    edit_of,
    fill_slots,
    to_extra_args,
)


def plan(steps: int | None = None, positions: str = "answer") -> EditPlan:
    return EditPlan.additive([0], torch.ones(1, 4), steps=steps, positions=positions)  # type: ignore[arg-type]


@given(
    prompt_length=st.integers(1, 40),
    generated=st.integers(0, 30),
    steps=st.one_of(st.none(), st.integers(1, 5)),
    positions=st.sampled_from(["answer", "all"]),
    cuts=st.lists(st.integers(1, 9), min_size=80, max_size=80),
)
def test_any_cut_into_steps_edits_the_positions_that_the_plan_covers(
    prompt_length: int, generated: int, steps: int | None, positions: str, cuts: list[int]
) -> None:
    made = plan(steps, positions)
    edit = RowEdit.of(made, 7, prompt_length)
    total = prompt_length + generated
    seen: list[int] = []
    for size in cuts:
        if len(seen) == total:
            break
        count = min(size, total - len(seen))
        out = np.zeros(count, np.int64)
        fill_slots(out, [edit], [len(seen)], [count])
        seen += out.tolist()
    assert seen == [7 if made.covers(position, prompt_length) else 0 for position in range(total)]


def test_each_requests_tokens_follow_the_ones_before() -> None:
    edits = [RowEdit(1, 4, 5, "a"), None, RowEdit(2, 0, 100, "b")]
    out = np.zeros(9, np.int64)
    assert fill_slots(out, edits, [3, 0, 50], [3, 2, 2])
    assert out.tolist() == [0, 1, 0, 0, 0, 2, 2, 0, 0]
    assert not fill_slots(np.zeros(4, np.int64), [edits[0]], [5], [4])


def test_a_message_comes_out_as_it_went_in() -> None:
    edit, capture = RowEdit(3, 10, 11, "sha"), RowCapture("c1", 2, 5)
    sent = to_extra_args(edit, capture)
    assert (edit_of(sent), capture_of(sent)) == (edit, capture)
    assert to_extra_args() is None
    assert edit_of(to_extra_args(capture=capture)) is None


@pytest.mark.parametrize(
    "message", [None, {}, {"alignez": None}, {"alignez": 3}, {"alignez": {"edit": 3}}, {"alignez": {"edit": {"x": 1}}}]
)
def test_a_foreign_message_is_no_edit(message: dict[str, object] | None) -> None:
    assert edit_of(message) is None
    assert capture_of(message) is None


def test_blocks_before_the_first_edited_position_are_untouched() -> None:
    edit = RowEdit.of(plan(1), 1, 33)  # edits position 32 alone; all that follows depends on it
    assert [edit.touches(end) for end in (16, 32, 33, 48, 64)] == [False, False, True, True, True]
    assert RowEdit.of(plan(positions="all"), 1, 33).touches(16)
