"""The choice on the tune split with scripted answers: bounds, finalists, and the prompt by its margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.fit_run import FitRun, Stage
from alignez_core.methods.base import Candidate
from alignez_core.proof.arms import BARE, PROMPT, Arena, Arm, Measured, Trial
from alignez_core.proof.choice import Choice, choose, repetition_bound, strain
from alignez_core.proof.gate import MAX_COHERENCE, MAX_REPETITION
from alignez_core.proof.measures import Comparison
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample

PERSONA = Persona("cheerful", "gloomy")
SAMPLES = [Sample(i, f"Query {i}?", PERSONA, split="tune") for i in range(8)]
PROMPTED = Candidate("persona as a prompt", "prompt")


class ScriptedArena(Arena):
    """Every arm's text is its name; nets, coherence gaps and repetition are told per candidate (and situation).

    Args:
        net: over the prompt. gap: nats per token beyond the prompted answers. repeats: repetition.
    """

    def __init__(
        self,
        net: Mapping[str, float],
        gap: Mapping[str, float] | None = None,
        repeats: Mapping[str, float] | None = None,
    ) -> None:
        self.run = FitRun(FakeEngine(), FitConfig(), lambda event: None)
        self.run.give(f"{BARE}/alone", {sample.index: "Yes." for sample in SAMPLES})
        self.net, self.gap, self.repeats = net, gap or {}, repeats or {}
        self.asked: list[tuple[str, str]] = []

    def ask(self, stage: Stage, arms: Sequence[Arm], trials: Sequence[Trial]) -> dict[tuple[str, str], dict[int, str]]:
        assert stage == "tuning"
        self.asked += [(arm.name, trial.situation.name) for trial in trials for arm in arms]
        return {
            (arm.name, t.situation.name): dict.fromkeys((s.index for s in t.samples), arm.name.removeprefix("tune/"))
            for t in trials
            for arm in arms
        }

    def measure(self, trial: Trial, texts: Mapping[int, str]) -> Measured:
        name = next(iter(texts.values()))
        repeats = self._at(self.repeats, name, trial, 0.02)
        return Measured(len(trial.samples), -1.0 - self._at(self.gap, name, trial, 0.0), repeats, 20.0)

    def compare(self, trial: Trial, texts: Mapping[int, str], others: Mapping[int, str]) -> Comparison:
        name, other = next(iter(texts.values())), next(iter(others.values()))
        net = self._at(self.net, name, trial, 0.0) if other == PROMPT and name != PROMPT else 1.0
        wins = round(abs(net) * 20)
        return Comparison((int(net / abs(net)) if net else 0,) * wins + (0,) * (20 - wins))

    @staticmethod
    def _at(table: Mapping[str, float], name: str, trial: Trial, default: float) -> float:
        return table.get(f"{name}@{trial.situation.name}", table.get(name, default))


def chosen(arena: ScriptedArena, prompt: Candidate | None = None, margin: float = 0.2) -> Choice:
    names = [name for name in arena.net if "@" not in name]
    candidates = [Candidate(name, "distill") for name in names]
    return choose(arena, candidates, SAMPLES, lambda c, s: None, prompt=prompt, prompt_margin=margin)


def test_the_largest_net_win_within_the_bounds_is_chosen() -> None:
    net = {"weak": 0.1, "good": 0.5, "loops": 1.0, "babbles": 0.9}
    arena = ScriptedArena(net, gap={"babbles": MAX_COHERENCE + 0.05}, repeats={"loops": 0.02 + MAX_REPETITION + 0.01})
    choice = chosen(arena)
    assert choice.candidate.name == "good"
    assert "+0.50" in choice.reason
    assert "within the bounds" in choice.reason
    rows = {(row["candidate"], row["situation"]): row for row in choice.trace}
    assert not rows["loops", "alone"]["within"]
    assert not rows["babbles", "alone"]["within"]
    assert rows["good", "long"]["within"]
    assert rows["good", "alone"]["net_over_bare"] == 1.0


def test_what_loops_only_in_long_answers_is_out_too() -> None:
    arena = ScriptedArena({"a": 0.9, "b": 0.4}, repeats={"a@long": 0.5})
    assert chosen(arena).candidate.name == "b"


def test_the_mean_over_all_situations_decides_among_the_finalists() -> None:
    arena = ScriptedArena({"a": 0.6, "b": 0.5, "a@third_turn": -0.5})
    assert chosen(arena).candidate.name == "b"


def test_situations_count_by_their_queries() -> None:
    """Eight plain queries that the prompt wins outweigh nine in three situations that the edit wins a little."""
    net = {"a": -0.9, "a@own_system": 0.3, "a@third_turn": 0.3, "a@long": 0.3, "b": -0.95}
    assert chosen(ScriptedArena(net), prompt=PROMPTED).candidate is PROMPTED


def test_the_best_and_two_gentler_ones_that_come_near_are_asked_where_users_are() -> None:
    nets = {"far": 0.1, "gentle": 0.6, "middle": 0.8, "rough": 0.8, "best": 0.9}
    gaps = {"far": 0.0, "gentle": 0.05, "middle": 0.1, "rough": 0.28, "best": 0.31}
    arena = ScriptedArena(nets, gaps, repeats={"best@long": 0.5})
    assert chosen(arena).candidate.name == "middle"
    asked = {name for name, where in arena.asked if where == "third_turn"}
    assert asked == {BARE, PROMPT, "tune/best", "tune/gentle", "tune/middle"}
    assert {name for name, where in arena.asked if where == "alone"} >= {f"tune/{name}" for name in nets}


def test_the_prompt_is_chosen_when_it_wins_by_more_than_its_tokens_are_worth() -> None:
    nets = {"a": -0.3, "b": -0.6}
    by_margin = chosen(ScriptedArena(nets), PROMPTED, margin=0.2)
    assert by_margin.candidate is PROMPTED
    assert "0.30" in by_margin.reason
    assert "0.2" in by_margin.reason
    assert chosen(ScriptedArena(nets), PROMPTED, margin=0.35).candidate.name == "a"
    assert chosen(ScriptedArena(nets), None, margin=0.2).candidate.name == "a"
    assert chosen(ScriptedArena({"a": 0.3, "b": 0.1}), PROMPTED, margin=0.0).candidate.name == "a"


def test_with_every_edit_beyond_the_bounds_the_prompt_is_served_or_the_least_bad_edit() -> None:
    nets, gaps = {"a": 0.9, "b": 0.2}, {"a": 3.0, "b": 0.5}
    assert chosen(ScriptedArena(nets, gaps), PROMPTED).candidate is PROMPTED
    least = chosen(ScriptedArena(nets, gaps))
    assert least.candidate.name == "b"
    assert "beyond the bounds" in least.reason


def test_likelihood_bounds_only_what_is_asked_alone() -> None:
    assert chosen(ScriptedArena({"a": 0.9, "b": 0.4}, {"a@third_turn": 2.0})).candidate.name == "a"
    assert chosen(ScriptedArena({"a": 0.9, "b": 0.4}, {"a@alone": 2.0})).candidate.name == "b"


@pytest.mark.parametrize("samples", [SAMPLES, []])
def test_what_needs_no_choice_is_not_measured(samples: list[Sample]) -> None:
    arena = ScriptedArena({"a": 0.0})
    candidates = [Candidate("a", "distill")] if samples else [Candidate("a", "distill"), Candidate("b", "distill")]
    choice = choose(arena, candidates, samples, lambda c, s: None)
    assert choice.candidate.name == "a"
    assert choice.trace == ()
    assert arena.asked == []


def test_a_candidate_well_within_the_bounds_goes_before_a_stronger_one_close_to_them() -> None:
    nets = {"close": 0.9, "well": 0.5}
    assert (
        chosen(ScriptedArena(nets, {"close": 0.9 * MAX_COHERENCE, "well": 0.5 * MAX_COHERENCE})).candidate.name
        == "well"
    )
    assert (
        chosen(ScriptedArena(nets, {"close": 0.7 * MAX_COHERENCE, "well": 0.5 * MAX_COHERENCE})).candidate.name
        == "close"
    )
    # Where nothing is well within, what is within is still better than the prompt.
    only = {"close": 0.9 * MAX_COHERENCE, "well": 2 * MAX_COHERENCE}
    assert chosen(ScriptedArena(nets, only), PROMPTED).candidate.name == "close"


def test_strain_is_the_share_of_the_bounds_that_is_used() -> None:
    base = {BARE: Measured(8, -2.0, 0.05, 20), PROMPT: Measured(8, -1.0, 0.02, 20)}
    assert repetition_bound(base) == pytest.approx(0.11)
    assert strain(Measured(8, -1.4, 0.11, 20), base) == pytest.approx(1.0)
    assert strain(Measured(8, -1.8, 0.0, 20), base) == pytest.approx(2.0)
    assert strain(Measured(8, -1.8, 0.23, 20), base) == pytest.approx(3.0)
    assert strain(Measured(8, -9.0, 0.0, 20), base, alone=False) == 0.0
    assert strain(Measured(8, -0.5, 0.0, 20), base) == 0.0
