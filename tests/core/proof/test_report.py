"""The held-out report on persona-nano: KL closed by rank, and what one report holds."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit_run import FitEvent, FitRun
from alignez_core.methods.base import Candidate, Material
from alignez_core.methods.distill import Form, fit_forms
from alignez_core.methods.prompt import prompt_candidate
from alignez_core.models import persona_nano
from alignez_core.prompts import persona_prompt
from alignez_core.proof import arms, report
from alignez_core.proof.arms import Arena
from alignez_core.proof.gate import weak_reasons
from alignez_core.proof.judges import Likelihoods, SelfJudge
from alignez_core.proof.report import kl_closed, prove
from alignez_core.self_preference import row_seed
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample

PERSONA = Persona("formal", "slang")
CONFIG = FitConfig(method="distill", contrast=0.0, answer_tokens=24)
SAMPLES = [Sample(i, text, PERSONA) for i, text in enumerate(persona_nano.query_bank()[:24])]
FIT, HELD_OUT = SAMPLES[:16], SAMPLES[16:]


@pytest.fixture(scope="module")
def answers(nano_engine: TransformersEngine) -> dict[int, str]:
    form = nano_engine.prompt_format
    requests = [
        GenerationRequest(persona_prompt(form, s.query, PERSONA, "help"), 24, 0.8, seed=row_seed(0, s.index, "x"))
        for s in SAMPLES
    ]
    return {s.index: c.text for s, c in zip(SAMPLES, nano_engine.generate(requests), strict=True)}


def test_kl_closed_grows_with_the_rank_and_is_nothing_without_an_edit(
    nano_engine: TransformersEngine, answers: dict[int, str]
) -> None:
    material = Material(nano_engine, CONFIG, FIT, HELD_OUT, answers)
    ranks = (0, 1, 3, 7)
    fits = fit_forms(material, 0, [Form(0.0, "full", tuple(range(8)), rank) for rank in ranks])
    list(fits.run())
    closed = []
    for fitted in fits.fitted:
        plan = fitted.plan(CONFIG)
        found = kl_closed(nano_engine, HELD_OUT, answers, lambda s, plan=plan: plan)  # type: ignore[misc]
        assert found is not None
        assert found["closed"] == pytest.approx(1 - found["prompted_edited"] / found["prompted_bare"], abs=1e-3)
        closed.append(found["closed"])
    assert all(later > earlier - 0.02 for earlier, later in pairwise(closed)), closed
    assert closed[-1] > closed[0] + 0.05
    assert closed[-1] > 0.5, closed
    bare = kl_closed(nano_engine, HELD_OUT, answers, lambda s: None)
    assert bare is not None
    assert bare["closed"] == pytest.approx(0.0, abs=1e-4)
    assert bare["edited_bare"] == pytest.approx(0.0, abs=1e-4)
    assert kl_closed(nano_engine, HELD_OUT, {}, lambda s: None) is None


def test_a_report_of_the_prompt_itself_ties_with_the_prompt(
    nano_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate whose prefix is the persona's prompt is asked with the same seeds, so it gives the same answers."""
    monkeypatch.setattr(arms, "LONG_TOKENS", 16)
    monkeypatch.setattr(report, "HARMFUL", report.HARMFUL[:2])
    monkeypatch.setattr(report, "NEUTRAL", report.NEUTRAL[:2])
    run = FitRun(nano_engine, CONFIG, lambda event: None)
    likelihoods = Likelihoods(nano_engine)
    arena = Arena(run, SelfJudge(likelihoods), likelihoods)
    candidate = prompt_candidate(FIT)
    found = prove(arena, candidate, HELD_OUT[:8], lambda sample, strength: None, tune=FIT[:2])
    json.dumps(found)
    assert found["n"] == 8
    assert found["comparisons"]["over_prompt"]["tie"] == 8
    assert found["comparisons"]["over_bare"] == found["comparisons"]["prompt_over_bare"]
    assert {row["situation"] for row in found["situations"]} == {"alone", "own_system", "long"}
    for row in found["situations"]:
        assert row["arms"]["prompt"] == row["arms"]["edited"]
        assert row["arms"]["prompt"]["coherence"] == 0
    assert found["expressiveness"]["effect"] > 2
    assert found["dose"] == []
    assert set(found["slices"]) == {"harmful", "neutral"}
    assert found["cost"]["prompt"]["prompt_tokens"] == found["cost"]["edited"]["prompt_tokens"]
    assert found["cost"]["prompt"]["prompt_tokens"] > found["cost"]["bare"]["prompt_tokens"] + 10
    assert [row["edited"] for row in found["samples"]] == [row["prompt"] for row in found["samples"]]
    assert weak_reasons(found) == ()


def test_nothing_held_out_is_a_report_that_shows_nothing(nano_engine: TransformersEngine) -> None:
    likelihoods = Likelihoods(nano_engine)
    arena = Arena(FitRun(nano_engine, CONFIG, lambda event: None), SelfJudge(likelihoods), likelihoods)
    found = prove(arena, Candidate("x", "distill"), [], lambda sample, strength: None, persona=PERSONA)
    assert found["n"] == 0
    assert found["expressiveness"] is None
    assert found["situations"] == []
    assert len(weak_reasons(found)) == 1


def test_without_held_out_queries_nothing_is_generated_for_the_proof(nano_engine: TransformersEngine) -> None:
    events: list[FitEvent] = []
    run = FitRun(nano_engine, CONFIG, events.append)
    likelihoods = Likelihoods(nano_engine)
    found = prove(
        Arena(run, SelfJudge(likelihoods), likelihoods), prompt_candidate(FIT), [], lambda sample, strength: None
    )
    assert (found["n"], found["slices"], found["cost"], found["samples"]) == (0, {}, {}, [])
    assert not any(event.chunk for event in events)
