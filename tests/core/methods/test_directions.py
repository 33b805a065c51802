"""Directions: planted ones are found, degenerate input is an error, and the maths holds under symmetry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_core.errors import DegenerateEmbeddings, InvalidInput
from alignez_core.methods.directions import fit_directions, top_direction, top_directions
from alignez_core.methods.transport import fit_transport


def planted(n: int, d: int, noise: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(d, generator=g, dtype=dtype)
    theta /= theta.norm()
    weights = 1 + torch.rand(n, 1, generator=g, dtype=dtype)
    return theta, weights * theta + noise * torch.randn(n, d, generator=g, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(10, 512), (300, 32), (32, 32), (1, 8)])
def test_a_planted_direction_is_recovered_with_its_sign(n: int, d: int, dtype: torch.dtype) -> None:
    theta, rows = planted(n, d, noise=0.01, dtype=dtype)
    found = top_direction(rows)
    assert found.dtype == dtype
    assert float(found @ theta) > 0.99
    assert float(found.norm()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("n", "d"), [(6, 40), (40, 6)])
def test_gram_form_and_numpy_svd_agree(n: int, d: int) -> None:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, values, right = np.linalg.svd(rows.numpy(), full_matrices=False)
    theta, energy = top_directions(rows.unsqueeze(0))
    assert abs(float(theta[0] @ torch.from_numpy(right[0]))) == pytest.approx(1.0, abs=1e-9)
    assert float(energy[0]) == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-9)


def test_two_by_two_by_hand() -> None:
    # Rows (3, 0) and (0, 1): singular values 3 and 1, right vectors the axes; uncentred, so not (3, -1)/|.|.
    assert torch.allclose(top_direction(torch.tensor([[3.0, 0.0], [0.0, 1.0]])), torch.tensor([1.0, 0.0]))


def test_the_matrix_is_not_centred() -> None:
    rows = torch.tensor([[10.0, 1.0], [10.0, -1.0]])
    assert torch.allclose(top_direction(rows), torch.tensor([1.0, 0.0]), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 1e6]), n=st.integers(2, 12))
def test_row_order_and_scale_change_nothing_and_sign_follows_the_rows(seed: int, scale: float, n: int) -> None:
    _, rows = planted(n, 20, noise=0.3, seed=seed)
    reference = top_direction(rows)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(top_direction(rows[order]), reference, atol=1e-4)
    assert torch.allclose(top_direction(rows * scale), reference, atol=1e-4)
    assert torch.allclose(top_direction(-rows), -reference, atol=1e-4)


@pytest.mark.parametrize(
    "rows",
    [torch.zeros(0, 4), torch.zeros(3, 4), torch.full((3, 4), 1e-9), torch.tensor([[1.0, float("nan")]]),
     torch.tensor([[1.0, float("inf")]])],
    ids=["none", "zero", "tiny", "nan", "inf"],
)  # fmt: skip
def test_rows_without_a_direction_are_an_error(rows: torch.Tensor) -> None:
    with pytest.raises(DegenerateEmbeddings):
        top_direction(rows)


def test_each_layer_has_its_own_direction_and_the_degenerate_one_is_named() -> None:
    (a, rows_a), (b, rows_b) = planted(8, 16, 0.01, seed=1), planted(8, 16, 0.01, seed=2)
    found = fit_directions(torch.stack([rows_a, rows_b], 1), torch.stack([rows_b, rows_a], 1))
    assert float(found.theta_help[0] @ a) > 0.99
    assert float(found.theta_help[1] @ b) > 0.99
    assert float(found.theta_harm[0] @ b) > 0.99
    assert found.cosine[0] == pytest.approx(abs(float(a @ b)), abs=0.02)
    with pytest.raises(DegenerateEmbeddings, match="layer index 1"):
        fit_directions(torch.stack([rows_a, torch.zeros(8, 16)], 1), torch.stack([rows_b, rows_b], 1))


def test_transport_finds_the_persona_s_shift_and_level() -> None:
    theta, _ = planted(1, 32, 0.0)
    plain = torch.randn(20, 1, 32, generator=torch.Generator().manual_seed(1))
    plain -= (plain @ theta).unsqueeze(-1) * theta  # nothing of theta in the plain rows
    found, tau = fit_transport(plain + 2.5 * theta, plain)
    assert float(found[0] @ theta) == pytest.approx(1.0, abs=1e-5)
    assert float(tau[0]) == pytest.approx(2.5, abs=1e-4)


def test_shapes_that_do_not_match_are_named() -> None:
    with pytest.raises(InvalidInput, match="harm"):
        fit_directions(torch.ones(4, 2, 8), torch.ones(5, 2, 8))
    with pytest.raises(InvalidInput, match="rows"):
        top_direction(torch.ones(4))
