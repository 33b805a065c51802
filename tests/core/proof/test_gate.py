"""The gate: each reason alone makes a version weak and says what to do."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from alignez_core.proof.gate import data_reasons, weak_reasons
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample


def situation(name: str) -> dict[str, Any]:
    return {"situation": name, "repetition_bound": 0.1, "arms": {"edited": {"coherence": 0.1, "repetition": 0.05}}}


GOOD: dict[str, Any] = {
    "comparisons": {"over_bare": {"n": 32, "net": 0.6, "interval": [0.4, 0.8]}},
    "expressiveness": {"contrast": 0.05, "effect": 1.3},
    "situations": [situation("alone"), situation("third_turn")],
}
SAMPLES = [Sample(i, f"Query {i}?", Persona()) for i in range(6)]


def test_a_report_within_all_bounds_is_good() -> None:
    assert weak_reasons(GOOD) == ()
    assert weak_reasons({**GOOD, "expressiveness": None}) == ()
    assert weak_reasons({**GOOD, "expressiveness": {"contrast": 0.02, "effect": 2.0}}) == ()  # little, but always


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("comparisons", "over_bare", "n"), 7, "7 held-out queries are too few, 8 are needed"),
        (("expressiveness", "contrast"), 0.022, "hardly distinguishes"),
        (("comparisons", "over_bare", "net"), 0.19, r"\+0.19 on 32 .* \+0.20 is needed"),
        (("comparisons", "over_bare", "interval"), [-0.01, 0.7], "could be chance"),
        (("comparisons", "over_bare", "interval"), [0.0, 0.7], "could be chance"),
        (("situations", 0, "arms", "edited", "coherence"), 0.41, r"answers lose coherence: 0.41 .* lower contrast"),
        (("situations", 1, "arms", "edited", "repetition"), 0.11, r"answers \(third turn\) repeat themselves: 0.11"),
    ],
)
def test_each_bound_alone_makes_it_weak_and_says_so(path: tuple[Any, ...], value: object, says: str) -> None:
    report = copy.deepcopy(GOOD)
    at = report
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    [reason] = weak_reasons(report)
    assert re.search(says, reason), reason


def test_coherence_late_in_a_conversation_is_reported_and_not_bounded() -> None:
    report = copy.deepcopy(GOOD)
    report["situations"][1]["arms"]["edited"]["coherence"] = 2.0
    assert weak_reasons(report) == ()


def test_a_swapped_persona_has_a_negative_net_win_and_one_reason_for_it() -> None:
    report = copy.deepcopy(GOOD)
    report["comparisons"]["over_bare"] = {"n": 32, "net": -0.9, "interval": [-1.0, -0.8]}
    [reason] = weak_reasons(report)
    assert "-0.90" in reason


def given(preferred: str = "Yes!", dispreferred: str = "No.") -> list[Sample]:
    return [Sample(i, "x", Persona(), "pair", (preferred, dispreferred)) for i in range(6)]


def test_good_data_have_no_reasons() -> None:
    assert data_reasons(SAMPLES, {i: f"Answer {i}" for i in range(6)}, {}) == ()
    assert (
        data_reasons(given(), {i: f"{i}" for i in range(6)}, {i: f"-{i}" for i in range(6)}, [1, 1, 0, 1, -1, -1]) == ()
    )


def test_empty_answers_answers_all_alike_equal_sides_and_swapped_sides_are_named() -> None:
    empty = dict.fromkeys(range(4), " \n") | {4: "a", 5: "b"}
    assert "4 of 6 answers under the persona are empty" in data_reasons(SAMPLES, empty, {})[0]
    [alike] = data_reasons(SAMPLES, dict.fromkeys(range(6), "Ahoy."), {})
    assert "alike, whatever the query" in alike
    assert data_reasons(SAMPLES[:3], dict.fromkeys(range(3), "Ahoy."), {}) == ()  # three may be so by chance
    same = {i: f"Same {i}" for i in range(6)}
    [equal] = data_reasons(given(), same, same)
    assert "6 of 6 pairs hold the same text on both sides" in equal
    [swapped] = data_reasons(given(), same, {i: f"{i}" for i in range(6)}, [-1, -1, -1, -1, 1, 0])
    assert "the sides look swapped: in 4 of 6 pairs" in swapped
