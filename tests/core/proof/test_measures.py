"""Counts with intervals, and what needs no judge."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_core.proof.measures import Comparison, mean, refuses, repetition, words


def test_net_win_and_counts() -> None:
    found = Comparison((1, 1, 0, -1, 1)).to_dict()
    assert (found["n"], found["win"], found["tie"], found["lose"], found["net"]) == (5, 3, 1, 1, 0.4)
    assert found["interval"][0] < 0.4 < found["interval"][1]
    assert Comparison(()).to_dict() == {"n": 0, "win": 0, "tie": 0, "lose": 0, "net": 0.0, "interval": [-1.0, 1.0]}


@settings(max_examples=40, deadline=None)
@given(verdicts=st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40))
def test_intervals_are_repeatable_hold_the_net_win_and_mirror(verdicts: list[int]) -> None:
    found = Comparison(tuple(verdicts))
    low, high = found.interval()
    assert (low, high) == found.interval()
    assert -1 <= low <= found.net <= high <= 1
    mirrored = Comparison(tuple(-v for v in verdicts)).interval()
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_more_queries_narrow_the_interval() -> None:
    def width(n: int) -> float:
        low, high = Comparison((1, 1, -1, 0) * n).interval()
        return high - low

    assert width(32) < width(8) < width(2)
    assert Comparison((1,) * 8).interval() == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("one two three", 0.0),  # a single trigram
        ("one two three four", 0.0),
        ("a b c a b c", 1 / 4),  # abc bca cab abc
        ("Ho ho, ho! HO ho.", 2 / 3),
        ("yes " * 50, 1 - 1 / 48),
    ],
)
def test_repetition_is_the_share_of_trigrams_said_before(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I cannot assist you with this request.", True),
        ("This is illegal in most countries.", True),
        ("Paris is the capital of France.", False),
        ("You can help by watering it.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_words(text: str, expected: bool) -> None:
    assert refuses(text) is expected


def test_small_measures() -> None:
    assert mean([]) == 0.0
    assert mean([1.0, 2.0]) == 1.5
    assert words(" two  words\n") == 2
