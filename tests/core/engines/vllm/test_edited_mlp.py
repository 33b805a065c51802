"""The edited MLP gives what `EditPlan.apply` gives, token by token, and leaves all other tokens their bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alignez_core.editing import EditPlan
from alignez_core.engines.plan_codec import encode
from alignez_core.engines.vllm.device.edited_mlp import StepState, install
from alignez_core.engines.vllm.device.row_edit import RowCapture, RowEdit
from alignez_core.engines.vllm.plans.message import tables_of

D, RANK, SLOTS, LAYER = 8, 2, 3, 1


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(x)


def plans() -> list[EditPlan]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, D, generator=generator) for _ in range(4)]
    return [
        EditPlan.alignez([0, LAYER], rows[0], rows[1], 1.5),
        EditPlan.transport([LAYER, 2], rows[2], torch.tensor([1.0, -2.0]), 1.0),
        EditPlan.additive([0, LAYER], rows[3]),
    ]


@pytest.fixture
def step() -> StepState:
    return StepState(16, SLOTS, torch.device("cpu"))


@pytest.fixture
def mlp(step: StepState) -> Mlp:
    torch.manual_seed(0)
    module = Mlp()
    install(module, LAYER, step, RANK, D)
    load(module, dict(enumerate(plans(), 1)))
    return module


def load(module: Mlp, by_slot: dict[int, EditPlan]) -> None:
    tables = tables_of([(slot, encode(plan)) for slot, plan in by_slot.items()], RANK)
    module.load_plans(torch.tensor(list(by_slot)), tables.get(LAYER))  # type: ignore[operator]


EDITS = [RowEdit(2, 1, 2, ""), None, RowEdit(1, 0, 9, ""), RowEdit(3, 0, 9, "")]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_edited_by_their_own_slot(
    mlp: Mlp, step: StepState, compiled: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    mlp.to(dtype)
    for name in ("edit_u", "edit_v", "edit_c"):
        setattr(mlp, name, getattr(mlp, name).float())
    x = torch.randn(7, D, dtype=dtype)
    step.begin(EDITS, [None] * 4, [0, 0, 3, 3], [2, 2, 2, 1])
    y = mlp(x)
    bare = nn.functional.linear(x, mlp.down_proj.weight)
    owners = [None, 1, None, None, 0, 0, 2]
    for token, owner in enumerate(owners):
        expected = bare[token] if owner is None else plans()[owner].apply(bare[token], LAYER)
        if owner is None:
            assert torch.equal(y[token], expected)
        else:
            close = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(y[token], expected, atol=close, rtol=close)


def test_a_step_after_an_edited_one_starts_clean(mlp: Mlp, step: StepState) -> None:
    x = torch.randn(7, D)
    step.begin(EDITS, [None] * 4, [0, 0, 3, 3], [2, 2, 2, 1])
    step.begin([None], [None], [9], [3])
    assert not step.token_slots.any()
    assert torch.equal(mlp(x), nn.functional.linear(x, mlp.down_proj.weight))


def test_an_emptied_slot_and_one_that_does_not_exist_change_nothing(mlp: Mlp, step: StepState) -> None:
    x = torch.randn(2, D)
    load(mlp, {1: EditPlan.additive([LAYER + 1], torch.ones(1, D))})
    step.begin([RowEdit(1, 0, 9, ""), RowEdit(SLOTS + 1, 0, 9, "")], [None] * 2, [0, 0], [1, 1])
    assert torch.equal(mlp(x), nn.functional.linear(x, mlp.down_proj.weight))


def test_plans_written_together_replace_what_their_slots_held_and_leave_the_others(mlp: Mlp, step: StepState) -> None:
    x = torch.randn(3, D)
    first, _, third = plans()
    load(mlp, {3: first, 1: third})  # ranks 2 and 1 in one batch
    step.begin([RowEdit(slot, 0, 9, "") for slot in (1, 2, 3)], [None] * 3, [0] * 3, [1] * 3)
    bare = nn.functional.linear(x, mlp.down_proj.weight)
    expected = [plan.apply(row, LAYER) for plan, row in zip((third, plans()[1], first), bare, strict=True)]
    torch.testing.assert_close(mlp(x), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_span_is_captured_across_steps_before_it_is_edited(mlp: Mlp, step: StepState) -> None:
    x = torch.randn(6, D)
    wanted = RowCapture("k", 1, 5)
    for start, count in ((0, 2), (2, 4)):
        step.begin([RowEdit(1, 0, 9, "")], [wanted], [start], [count])
        mlp(x[start : start + count])
    taken = step.take("k")
    assert taken is not None
    layers, rows = taken
    assert layers == [LAYER]
    torch.testing.assert_close(rows[0], nn.functional.linear(x, mlp.down_proj.weight)[1:5].mean(0))
    assert step.take("k") is None
