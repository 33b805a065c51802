"""Edits: the compiled low-rank form equals the paper's formula, and strength 0 changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_core.editing import EditPlan, apply_edit, gathered_edit, low_rank_edit
from alignez_core.errors import DegenerateEmbeddings, InvalidInput, ModelMismatch
from alignez_core.spec.limits import EDIT_RULES

D = 12


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_paper_s_edit_by_hand() -> None:
    # h = e0 is removed, p = (0.6, 0.8) is then doubled: x = (2, 1) -> (0, 1) -> (0, 1) + 0.8·(0.6, 0.8).
    x, h, p = torch.tensor([2.0, 1.0]), torch.tensor([3.0, 0.0]), torch.tensor([0.6, 0.8])
    assert torch.allclose(apply_edit(x, h, p), torch.tensor([0.48, 1.64]))
    # At once (appendix B): <x, p> = 2.
    assert torch.allclose(apply_edit(x, h, p, rule="simultaneous"), torch.tensor([1.2, 2.6]))
    # Orthogonal: p becomes e1.
    assert torch.allclose(apply_edit(x, h, p, rule="orthogonal"), torch.tensor([0.0, 2.0]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), strength=st.floats(0.05, 2.0), rule=st.sampled_from(EDIT_RULES))
def test_the_low_rank_form_equals_the_formula(seed: int, strength: float, rule: str) -> None:
    x, h, p = vectors(seed, 7, D), vectors(seed + 1, 2, D), vectors(seed + 2, 2, D)
    plan = EditPlan.alignez((3, 5), h, p, strength, rule)  # type: ignore[arg-type]
    for i, layer in enumerate((3, 5)):
        expected = apply_edit(x, h[i], p[i], strength, rule)  # type: ignore[arg-type]
        assert torch.allclose(plan.apply(x.float(), layer).double(), expected, atol=2e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_the_edit_ignores_sign_and_length_of_its_directions(seed: int) -> None:
    x, h, p = vectors(seed, 4, D), vectors(seed + 1, D), vectors(seed + 2, D)
    assert torch.allclose(apply_edit(x, -h, 5 * p), apply_edit(x, h, p), atol=1e-9)


def test_harm_is_removed_and_help_doubled_when_they_are_orthogonal() -> None:
    x, h = vectors(0, D), vectors(1, D)
    p = vectors(2, D)
    p = p - (p @ h) / (h @ h) * h
    y = apply_edit(x, h, p)
    assert float(y @ h) == pytest.approx(0.0, abs=1e-9)
    assert float(y @ p) == pytest.approx(2 * float(x @ p), rel=1e-9)


def test_transport_moves_the_component_to_tau_and_is_idempotent() -> None:
    x, theta, tau = vectors(0, 5, D).float(), vectors(1, 1, D).float(), torch.tensor([1.7])
    plan = EditPlan.transport([0], theta, tau)
    unit = theta[0] / theta[0].norm()
    y = plan.apply(x, 0)
    assert torch.allclose(y @ unit, torch.full((5,), 1.7), atol=1e-5)
    assert torch.allclose(plan.apply(y, 0), y, atol=1e-5)
    rest = x - (x @ unit).unsqueeze(-1) * unit
    assert torch.allclose(y - (y @ unit).unsqueeze(-1) * unit, rest, atol=1e-5)
    half = EditPlan.transport([0], theta, tau, strength=0.5)
    assert torch.allclose(half.apply(x, 0), (x + y) / 2, atol=1e-5)


def test_additive_adds_the_scaled_vector_wherever_x_is() -> None:
    x, v = vectors(0, 3, D).float(), vectors(1, 1, D).float()
    plan = EditPlan.additive([2], v, strength=0.5)
    assert torch.allclose(plan.apply(x, 2), x + 0.5 * v[0], atol=1e-6)
    assert plan.apply(x, 1) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_the_same_bits(dtype: torch.dtype) -> None:
    x = vectors(0, 5, D).to(dtype)
    x[0, 0] = -0.0
    h, p = vectors(1, 1, D), vectors(2, 1, D)
    for plan in (EditPlan.alignez([0], h, p, 0.0), EditPlan.transport([0], p, torch.ones(1), 0.0),
                 EditPlan.additive([0], p, 0.0)):  # fmt: skip
        assert plan.is_identity
        assert torch.equal(plan.apply(x, 0).view(torch.uint8), x.view(torch.uint8))


def test_position_rule() -> None:
    h = vectors(1, 1, D)
    first = EditPlan.transport([0], h, torch.ones(1), steps=2)
    assert [t for t in range(10) if first.covers(t, prompt_length=5)] == [4, 5]
    endless = EditPlan.alignez([0], h, vectors(2, 1, D))
    assert [t for t in range(8) if endless.covers(t, prompt_length=5)] == [4, 5, 6, 7]
    everywhere = EditPlan.alignez([0], h, vectors(2, 1, D), positions="all")
    assert all(everywhere.covers(t, 5) for t in range(8))


def test_identity_is_the_content_not_the_name() -> None:
    h, p = vectors(1, 2, D), vectors(2, 2, D)
    plan = EditPlan.alignez([1, 4], h, p)
    assert plan == EditPlan.alignez([4, 1], h.flip(0), p.flip(0))
    others = [EditPlan.alignez([1, 4], h, p, 0.9), EditPlan.alignez([1, 5], h, p), EditPlan.alignez([1, 4], p, h),
              EditPlan.alignez([1, 4], h, p, steps=3), EditPlan.alignez([1, 4], h, p, positions="all")]  # fmt: skip
    assert len({plan.sha256, *(o.sha256 for o in others)}) == 6


def test_wrong_plans_are_errors_that_name_the_field() -> None:
    h, p = vectors(1, 1, D), vectors(2, 1, D)
    with pytest.raises(InvalidInput, match="edit_rule"):
        EditPlan.alignez([0], h, p, rule="best")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="strength"):
        EditPlan.alignez([0], h, p, strength=float("nan"))
    with pytest.raises(InvalidInput, match="layers"):
        EditPlan.alignez([0, 1], h, p)
    with pytest.raises(InvalidInput, match="layers"):
        EditPlan.additive([3, 3], torch.ones(2, D))
    with pytest.raises(InvalidInput, match="steps"):
        EditPlan.transport([0], p, torch.ones(1), steps=0)
    with pytest.raises(InvalidInput, match="rank"):
        EditPlan((0,), torch.ones(1, 9, D), torch.ones(1, 9, D), torch.ones(1, 9))
    with pytest.raises(DegenerateEmbeddings, match="theta_harm"):
        EditPlan.alignez([0], torch.zeros(1, D), p)
    with pytest.raises(DegenerateEmbeddings, match="parallel"):
        EditPlan.alignez([0], h, 3 * h, rule="orthogonal")
    with pytest.raises(DegenerateEmbeddings, match="finite"):
        EditPlan.additive([0], torch.full((1, D), float("nan")))
    with pytest.raises(ModelMismatch, match="width"):
        EditPlan.additive([0], torch.ones(1, D)).check_fits(n_layers=4, hidden_size=D + 1)
    with pytest.raises(ModelMismatch, match="layer"):
        EditPlan.additive([4], torch.ones(1, D)).check_fits(n_layers=4, hidden_size=D)


def test_both_layouts_of_the_formula_are_the_plan_s_own_edit() -> None:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    plans = [EditPlan((0,), drawn(1, 3, 8), drawn(1, 3, 8), drawn(1, 3)) for _ in range(4)]
    x = torch.randn(4, 5, 8, generator=generator)
    expected = torch.stack([plan.apply(row, 0) for plan, row in zip(plans, x, strict=True)])
    u, v, c = (torch.cat([getattr(plan, name) for plan in plans]) for name in ("U", "V", "c"))
    assert torch.allclose(low_rank_edit(x, u, v, c), expected, atol=1e-5)
    slots = torch.arange(4).repeat_interleave(5)
    tables = (u.transpose(0, 1), v.transpose(0, 1), c.T)
    assert torch.allclose(gathered_edit(x.reshape(20, 8), *tables, slots).view(4, 5, 8), expected, atol=1e-5)
    by_hand = x[0] + (x[0] @ plans[0].U[0].T + plans[0].c[0]) @ plans[0].V[0]
    assert torch.allclose(expected[0], by_hand, atol=1e-5)


def test_the_span_is_what_covers_says() -> None:
    h = torch.ones(1, 4)
    for steps in (None, 1, 3):
        for positions in ("answer", "all"):
            plan = EditPlan.additive([0], h, steps=steps, positions=positions)
            first, end = plan.span(5)
            assert [t for t in range(12) if first <= t < end] == [t for t in range(12) if plan.covers(t, 5)]
            expected = range(12) if positions == "all" else range(4, 12 if steps is None else 4 + steps)
            assert [t for t in range(12) if plan.covers(t, 5)] == list(expected)
