"""What the replica measurement makes of times: figures and ratios."""

from __future__ import annotations

import pytest

from bench.replicas import Load, load_of, ratios


def load(rate: float, api_ms: float) -> Load:
    return Load(rate, 1.0, 2.0, 3.0, {"API": api_ms}, 1.0)


def test_a_load_is_told_per_request() -> None:
    made = load_of([i / 1000 for i in range(1, 101)], 2.0, {"API": 0.5, "Postgres": 0.1})
    assert made.rate == 50
    assert (made.p50, made.p95) == (pytest.approx(50.5), pytest.approx(95.05))
    assert made.cpu_ms == {"API": pytest.approx(5.0), "Postgres": pytest.approx(1.0)}
    assert made.cores == pytest.approx(0.3)


def test_ratios_are_to_one_replica() -> None:
    loads = {1: load(100, 4.0), 2: load(190, 4.4), 3: load(270, 4.0)}
    assert ratios(loads) == {2: pytest.approx(1.9), 3: pytest.approx(2.7)}
    assert ratios(loads, "API") == {2: pytest.approx(1.1), 3: pytest.approx(1.0)}
