"""Net wins, their intervals, the relative improvement, rank correlations and harmonic means, against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignez_core.proof.measures import Comparison, bootstrap_interval
from research.axbench import harmonic
from research.figures import NetWin, relative_improvement
from research.predictor import rank_correlation, with_spread


def test_a_net_win_counts_every_verdict_and_draws_over_queries() -> None:
    net = NetWin.of([[1, 1, 0, -1], [1, 0, 0, -1]])
    assert (net.queries, net.seeds, net.win, net.lose) == (4, 2, 3 / 8, 2 / 8)
    assert net.net == pytest.approx(1 / 8)
    assert (net.low, net.high) == bootstrap_interval([1, 0.5, 0, -1])
    assert str(net) == f"+0.12 ({net.low:+.2f} to {net.high:+.2f})"


def test_with_one_seed_the_interval_is_the_report_s() -> None:
    verdicts = [1, 1, 0, -1, 1, 1, 0, 1]
    net = NetWin.of([verdicts])
    assert (net.low, net.high) == pytest.approx(Comparison(tuple(verdicts)).interval())


def test_seeds_that_agree_do_not_narrow_the_interval() -> None:
    verdicts = [1, -1, 0, 1, 1, -1, 0, 1]
    once, thrice = NetWin.of([verdicts]), NetWin.of([verdicts] * 3)
    assert (once.low, once.high) == (thrice.low, thrice.high)


def test_an_interval_without_values_is_no_number() -> None:
    assert all(math.isnan(bound) for bound in bootstrap_interval([]))


def test_relative_improvement_is_that_of_the_paper_s_table() -> None:
    """Mistral on oasst: Δ 27.0 of 55.0 is RI 49.1."""
    assert relative_improvement(27.0, 55.0) == "49"
    assert relative_improvement(0.1, 0.0) == "–"
    assert relative_improvement(0.1, -0.2) == "–"


def test_rank_correlation_of_known_orders() -> None:
    assert rank_correlation([1, 2, 3], [10, 200, 3000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Without ties it is 1 − 6 Σd² ÷ n(n² − 1).
    a, b = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
    assert rank_correlation(a, b) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # Ties take their mean rank: (1.5, 1.5, 3) against (1, 2, 3).
    assert rank_correlation([7, 7, 9], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))


def test_rank_correlation_ignores_monotone_changes_of_its_sides() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=30), random.normal(size=30)
    found = rank_correlation(a.tolist(), b.tolist())
    assert rank_correlation(np.exp(a).tolist(), (b**3).tolist()) == pytest.approx(found)
    assert rank_correlation(b.tolist(), a.tolist()) == pytest.approx(found)


def test_a_constant_side_has_no_correlation() -> None:
    assert with_spread([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == "–"


def test_the_harmonic_mean_is_zero_where_a_value_is() -> None:
    assert harmonic([2, 2, 2]) == 2
    assert harmonic([1, 2, 2]) == pytest.approx(1.5)
    assert harmonic([0, 2, 2]) == 0
