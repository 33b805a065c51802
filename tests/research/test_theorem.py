"""Theorem 3.1: the simulation agrees with the exact expectations; where the paper's bounds hold, and where not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from research.theorem import Noise, Result, bounds, corrected, exact, main, simulate, table

NOISES = [
    Noise(align, linguistic, dimension, beta, gamma)
    for align in (0.05, 0.2, 0.5)
    for linguistic in (0.0, 0.05, 0.2)
    for dimension, beta, gamma in ((8, 1.0, 1.0), (64, 0.7, 1.3))
]


@pytest.mark.parametrize("noise", NOISES[::3], ids=str)
def test_the_simulation_is_within_two_percent_of_the_exact_expectations(noise: Noise) -> None:
    true, (mean, error) = exact(noise), simulate(noise, 60_000)
    for name in ("help", "harm", "other"):
        found, expected = getattr(mean, name), getattr(true, name)
        assert abs(found - expected) <= max(0.02 * abs(expected), 4 * getattr(error, name))


def test_without_noise_harm_goes_and_help_doubles() -> None:
    clean = exact(Noise(0, 0))
    assert (clean.help, clean.harm, clean.other) == pytest.approx((2, 0, 1), abs=1e-9)
    mean, _ = simulate(Noise(0, 0, 8), 10)
    assert (mean.help, mean.harm, mean.other) == pytest.approx((2, 0, 1))


def test_equal_noise_is_a_chi_square_mean() -> None:
    """With σ_align = σ_linguistic all d shares of T add up to 1: c²/T once and d − 1 equal ones."""
    noise = Noise(0.3, 0.3, 20)
    true = exact(noise)
    assert true.help + true.harm == pytest.approx(2)  # β = γ: the shares cancel crosswise
    share = np.mean(1 / (1 + 0.09 * np.random.default_rng(0).chisquare(19, 400_000)))
    assert true.help - 1 == pytest.approx(share - (1 - share) / 19, rel=0.01)


def test_the_bounds_on_harm_and_on_other_concepts_hold() -> None:
    for noise in NOISES:
        true, bound = exact(noise), bounds(noise)
        assert abs(true.harm) <= bound.harm + 1e-9
        assert abs(true.other - 1) <= bound.other + 1e-9


def test_the_bound_on_help_fails_where_the_dropped_term_outweighs_jensens_gap_and_the_corrected_one_holds() -> None:
    fails = [noise for noise in NOISES if exact(noise).help < bounds(noise).help - 1e-9]
    assert all(noise in fails for noise in NOISES if noise.linguistic == 0)
    assert Noise(0.05, 0.2, 64, 0.7, 1.3) not in fails
    for noise in NOISES:
        assert exact(noise).help >= corrected(noise) - 1e-9


def test_the_command_writes_data_table_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["theorem", "--samples", "200", "--dimension", "8", "--out", str(tmp_path)])
    main()
    rows = json.loads((tmp_path / "theorem.json").read_text())
    assert len(rows) == 12
    again = [Result.of(Noise(**row["noise"]), 200) for row in rows]
    assert rows == [asdict(each) for each in again]
    assert (tmp_path / "theorem.md").read_text() == table(again) + "\n"
    assert "<svg" in (tmp_path / "theorem.svg").read_text()
