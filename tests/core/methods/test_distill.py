"""`distill` against its arithmetic written out with plain hooks, and what a closed form must hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import ScoreRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.base import Material
from alignez_core.methods.distill import Distill, Form, FormFits, default_layers, fit_forms, grid, shaped
from alignez_core.methods.low_rank import low_rank
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample
from tests.core.methods.plain_model import PlainModel

PERSONA = Persona("cheerful", "gloomy")
SAMPLES = [Sample(i, f"What is thing number {i}?", PERSONA) for i in range(9)]
ANSWERS = {i: f" It is number {i * 7 % 5}, {'oh ' * (i % 4)}and so on." for i in range(9)}
HELP = "You are a cheerful assistant. Always answer in a cheerful manner.\n"
HARM = "You are a gloomy assistant. Always answer in a gloomy manner.\n"
LAYERS = (1, 3, 4)


def reference_low_rank(x: Tensor, gap: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """As the method's definition has it (docs/effect.md): ridge on centred rows, truncated, plus a row for the mean."""
    x, gap = x.double(), gap.double()
    mean, b = x.mean(0), gap.mean(0)
    centred = x - mean
    normal = centred.T @ centred
    normal += normal.diagonal().mean() * torch.eye(len(normal))
    weights = torch.linalg.solve(normal, centred.T @ (gap - b))
    v = torch.linalg.svd(centred @ weights, full_matrices=False)[2][:rank]
    u, bias = (weights @ v.T).T, b - mean @ weights @ v.T @ v
    width = x.shape[1]
    return torch.cat([u, torch.zeros(1, width)]), torch.cat([v, bias[None]]), torch.tensor([0.0] * rank + [1.0])


def reference_distill(plain: PlainModel, contrast: float, form: str, rank: int) -> dict[int, tuple[Tensor, ...]]:
    """Layer after layer, everything below it edited, one text at a time."""
    tables: dict[int, tuple[Tensor, ...]] = {}

    def read(opening: str, edits: dict[int, Callable[[Tensor], Tensor]] | None = None) -> tuple[Tensor, Tensor]:
        parts = [plain.read(f"{opening}{s.query}\nAnswer:", ANSWERS[s.index], edits)[:2] for s in SAMPLES]
        return torch.cat([x for x, _ in parts], 1), torch.cat([r for _, r in parts], 1)

    want, away = read(HELP)[1], read(HARM)[1]
    for layer in LAYERS:
        x, r = read("", {k: _applied(table) for k, table in tables.items()})
        more = want[layer] - away[layer]
        if form == "mean":
            more = more.mean(0, keepdim=True).expand_as(more)
        if form == "clipped":
            norm = more.norm(dim=1, keepdim=True)
            more = more * torch.minimum(torch.ones_like(norm), norm.median() / norm)
        tables[layer] = reference_low_rank(x[layer], want[layer] + contrast * more - r[layer], rank)
    return tables


def _applied(table: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    u, v, c = (part.float() for part in table)
    return lambda x: x + (x @ u.T + c) @ v


@pytest.mark.parametrize(("contrast", "form"), [(0.0, "full"), (1.5, "full"), (1.0, "mean"), (2.0, "clipped")])
def test_it_is_the_reference_s_arithmetic(
    engine: TransformersEngine, plain: PlainModel, contrast: float, form: str
) -> None:
    fits = FormFits(engine, SAMPLES, [], ANSWERS, [Form(contrast, form, LAYERS, 3, 1.0)])  # type: ignore[arg-type]
    assert list(fits.run()) == [1, 1, 1]
    expected = reference_distill(plain, contrast, form, rank=3)
    plan = fits.fitted[0].plan(FitConfig())
    assert plan.layers == LAYERS
    assert plan.steps is None
    for i, layer in enumerate(LAYERS):
        u, v, c = (part.float() for part in expected[layer])
        sign = torch.sign((plan.V[i] * v).sum(1, keepdim=True))
        torch.testing.assert_close(plan.V[i], sign * v, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(plan.U[i], sign * u, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(plan.c[i], c)
        assert sign[-1] == 1  # the mean's row has no free sign


def test_forms_fitted_together_are_those_fitted_alone(engine: TransformersEngine) -> None:
    forms = [Form(0.0, "full", (1, 2), 2), Form(1.0, "mean", (2, 5), 3), Form(1.0, "full", tuple(range(6)), 7)]
    together = FormFits(engine, SAMPLES[:6], SAMPLES[6:], ANSWERS, forms)
    list(together.run())
    for form, fitted in zip(forms, together.fitted, strict=True):
        alone = FormFits(engine, SAMPLES[:6], SAMPLES[6:], ANSWERS, [form])
        list(alone.run())
        a, b = fitted.plan(FitConfig()), alone.fitted[0].plan(FitConfig())
        x = torch.randn(4, a.hidden_size, generator=torch.Generator().manual_seed(0))
        for layer in form.layers:
            torch.testing.assert_close(a.apply(x, layer), b.apply(x, layer), atol=1e-3, rtol=1e-3)
        assert fitted.explained == pytest.approx(alone.fitted[0].explained, abs=1e-3)


def test_explained_is_the_share_of_the_probes_squared_gap(engine: TransformersEngine, plain: PlainModel) -> None:
    layer = 2
    fits = FormFits(engine, SAMPLES[:6], SAMPLES[6:], ANSWERS, [Form(0.0, "full", (layer,), 3)])
    list(fits.run())
    plan = fits.fitted[0].plan(FitConfig())
    total = left = 0.0
    for sample in SAMPLES[6:]:
        x, r, _ = plain.read(f"{sample.query}\nAnswer:", ANSWERS[sample.index])
        gap = plain.read(f"{HELP}{sample.query}\nAnswer:", ANSWERS[sample.index])[1][layer] - r[layer]
        total += float(gap.square().sum())
        left += float((gap - (plan.apply(x[layer], layer) - x[layer])).square().sum())
    assert fits.fitted[0].explained[layer] == pytest.approx(1 - left / total, abs=1e-3)


def planted(tokens: int, width: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (T, D), and a gap that is a map of that rank of it, plus a constant."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=g, dtype=torch.float64) + 1.0
    read, write = (torch.randn(rank, width, generator=g, dtype=torch.float64) for _ in range(2))
    return x, (x @ read.T) @ write / width**0.5 + torch.randn(width, generator=g, dtype=torch.float64)


def applied(x: Tensor, tables: Sequence[Tensor]) -> Tensor:
    u, v, c = (t.double() for t in tables)
    return (x @ u.T + c) @ v


@pytest.mark.parametrize(("tokens", "width"), [(200, 24), (20, 24)])
def test_a_planted_low_rank_map_is_recovered(tokens: int, width: int) -> None:
    x, gap = planted(tokens, width, rank=2)
    u, v, c = low_rank(x, gap, rank=2, ridge=1e-9)
    assert u.shape == v.shape == (3, width)
    assert torch.allclose(applied(x, (u, v, c)), gap, atol=1e-4)
    again = low_rank(x, gap - applied(x, (u, v, c)), rank=2, ridge=1e-9)
    assert float(applied(x, again).norm() / gap.norm()) < 1e-5  # nothing is left to find


@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_what_a_smaller_rank_leaves_is_the_tail_of_the_singular_values(rank: int) -> None:
    x, gap = planted(300, 24, rank=8, seed=rank)
    left = gap - applied(x, low_rank(x, gap, rank, ridge=1e-9))
    values = torch.linalg.svdvals(gap - gap.mean(0))
    assert float(left.square().sum()) == pytest.approx(float(values[rank:].square().sum()), rel=1e-4)
    assert torch.allclose(left.mean(0), torch.zeros(24, dtype=torch.float64), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), scale=st.sampled_from([1e-3, 1.0, 1e3]), rank=st.integers(0, 4))
def test_row_order_changes_nothing_and_scales_pass_through(seed: int, scale: float, rank: int) -> None:
    x, gap = planted(60, 12, rank=5, seed=seed)
    fitted = applied(x, low_rank(x, gap, rank))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    bound: dict[str, Any] = {"atol": 1e-5 * float(gap.abs().max()), "rtol": 1e-4}
    assert torch.allclose(applied(x, low_rank(x[order], gap[order], rank)), fitted, **bound)
    # The ridge is in units of the rows' own energy, so the fit does not depend on the unit of x.
    assert torch.allclose(applied(scale * x, low_rank(scale * x, gap, rank)), fitted, **bound)
    assert torch.allclose(applied(x, low_rank(x, -gap, rank)), -fitted, **bound)


def test_degenerate_rows_leave_the_mean_or_are_an_error() -> None:
    x, gap = planted(2, 8, rank=1)
    assert low_rank(x, gap, rank=5)[0].shape == (2, 8)  # two rows have one direction beside their mean
    assert not low_rank(torch.ones(4, 8), torch.ones(4, 8), 3)[0].any()  # x does not vary: the mean alone
    assert torch.allclose(applied(torch.ones(4, 8).double(), low_rank(torch.ones(4, 8), torch.ones(4, 8), 3)),
                          torch.ones(4, 8).double())  # fmt: skip
    with pytest.raises(DegenerateEmbeddings, match="finite"):
        low_rank(x, gap * float("nan"), 1)


def test_shapes_of_the_contrast() -> None:
    contrast = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0], [60.0, 80.0]])
    assert torch.equal(shaped(contrast, "full", 3), contrast)
    assert torch.allclose(shaped(contrast, "mean", 3), torch.tensor([[1.0, 7 / 3]]).expand(4, 2))
    # Norms of the fitted rows 5, 1, 2: median 2; the row that is not fitted on is clipped by it, too.
    assert torch.allclose(
        shaped(contrast, "clipped", 3), torch.tensor([[1.2, 1.6], [0.0, 1.0], [0.0, 2.0], [1.2, 1.6]])
    )


def test_a_planted_edit_is_found_again_and_leaves_no_gap(engine: TransformersEngine) -> None:
    """The wanted model is the plain one with an edit; fitted, and fitted again on the edited model."""
    g = torch.Generator().manual_seed(0)
    u, v = (torch.randn(1, 2, engine.info.hidden_size, generator=g) * 0.3 for _ in range(2))
    wanted = EditPlan.low_rank([3], u, v, torch.ones(1, 2))

    def states(edit: EditPlan | None) -> tuple[Tensor, Tensor]:
        walk = engine.walk([ScoreRequest(f"{s.query}\nAnswer:", ANSWERS[s.index], edit) for s in SAMPLES])
        at = walk.after(3)
        walk.close()
        return at.x, at.r

    x, r = states(None)
    want = states(wanted)[1]
    tables = low_rank(x, want - r, 2, ridge=1e-9)
    u, v, c = (t[None] for t in tables)
    found = EditPlan.low_rank([3], u, v, c)
    left = want - states(found)[1]
    assert float(left.norm() / (want - r).norm()) < 1e-4


def test_after_the_edit_no_mean_gap_is_left_at_any_edited_layer(engine: TransformersEngine) -> None:
    fits = FormFits(engine, SAMPLES, [], ANSWERS, [Form(0.0, "full", LAYERS, 3)])
    list(fits.run())
    plan = fits.fitted[0].plan(FitConfig())
    help_ = engine.walk([ScoreRequest(f"{HELP}{s.query}\nAnswer:", ANSWERS[s.index]) for s in SAMPLES])
    edited = engine.walk([ScoreRequest(f"{s.query}\nAnswer:", ANSWERS[s.index], plan) for s in SAMPLES])
    for layer in LAYERS:
        gap = help_.after(layer).r - edited.after(layer).r
        assert float(gap.mean(0).abs().max()) < 1e-3
    help_.close()
    edited.close()


def test_each_group_has_a_plan_of_its_own(engine: TransformersEngine) -> None:
    formal = Persona("formal", "slangy")
    rows = [*SAMPLES[:4], *(Sample(s.index, s.query, formal, group=1) for s in SAMPLES[4:8])]
    config = FitConfig(method="distill", contrast=0.0, layers=(2, 4))
    reports: list[tuple[int, int]] = []
    material = Material(engine, config, rows, help=ANSWERS, report=lambda *at: reports.append(at))
    [candidate] = Distill().candidates(material)
    assert len(candidate.edits) == 2
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]
    fits = fit_forms(material, 1, grid(config, 6))
    list(fits.run())
    assert fits.fitted[0].plan(config) == candidate.edits[1] != candidate.edits[0]


def test_a_fit_that_is_stopped_between_blocks_closes_its_passes(engine: TransformersEngine) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    config = FitConfig(method="distill", contrast=1.0)
    with pytest.raises(KeyboardInterrupt):
        Distill().candidates(Material(engine, config, SAMPLES, help=ANSWERS, report=stop))
    assert not [t for t in threading.enumerate() if t.name == "alignez-block-pass"]


def test_the_grid_leaves_open_what_the_settings_leave_open() -> None:
    assert default_layers(30) == (15, 18, 21, 24)
    [one] = grid(FitConfig(method="distill", contrast=1.5, contrast_form="mean", layers=(2,), rank=5, ridge=0.1), 30)
    assert one == Form(1.5, "mean", (2,), 5, 0.1)
    assert {f.contrast for f in grid(FitConfig(method="distill"), 30)} == {0.0, 0.5, 1.0, 1.5, 2.0, 3.0}
    assert all(len(f.layers) == 4 and f.rank == 3 for f in grid(FitConfig(method="distill"), 30))
    strong = [f for f in grid(FitConfig(), 30) if len(f.layers) == 30]
    assert strong
    assert all(f.rank == 7 for f in strong)
    assert grid(FitConfig(method="distill", layers="all", contrast=1.0), 8)[0].layers == tuple(range(8))
    names = [f.name(30) for f in grid(FitConfig(), 30)]
    assert len(set(names)) == len(names)
    assert grid(FitConfig(), 30)[-1].name(30).startswith("all layers, rank 7, λ")
