"""The capacity page says what its formulas give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.capacity import Assumed, Measured, lookup_bytes, needed, packed, reach, replaced, table, version_bytes
from profiles import vectors

SMALL = replace(Assumed(), hidden=32, layers=2, queries=5, neighbors=3)


def test_the_page_shows_the_computed_table() -> None:
    page = (Path(__file__).parents[2] / "docs/capacity.md").read_text(encoding="utf-8")
    assert replaced(page, table((1_000, 100_000, 10_000_000), Assumed(), Measured())) == page


def test_a_side_has_as_many_bytes_as_are_stored_for_it() -> None:
    assert packed(SMALL) == len(vectors.pack(np.zeros((2, 32), np.float32)))


def test_bytes_of_a_version_by_hand() -> None:
    made = version_bytes(SMALL)
    assert made.representations == 5 * 3 * 2 * (4 + 64)
    assert made.queries == 5 * (128 + 128 + 100)
    assert made.directions == 2 * 3 * 128
    assert lookup_bytes(SMALL)[0] == 3 * 2 * 2 * (4 + 64)


def test_twice_the_users_need_twice_as_much() -> None:
    one, two = (needed(users, Assumed(), Measured()) for users in (1_000_000, 2_000_000))
    assert (two.stored, two.answers_s) == (2 * one.stored, 2 * one.answers_s)
    assert two.serving_gpus == pytest.approx(2 * one.serving_gpus, abs=1)


def test_a_larger_server_reaches_further() -> None:
    more = reach(replace(Assumed(), server_storage=20e12), Measured())
    assert more["storage"] == pytest.approx(2 * reach(Assumed(), Measured())["storage"], rel=1e-3)
