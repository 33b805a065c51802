"""The gate on persona-nano: what must not be promoted is weak, whatever the judge's likelihoods say of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.fit import FittedProfile, fit_profile
from alignez_core.fit_run import FitRun
from alignez_core.methods.base import Candidate
from alignez_core.models import persona_nano
from alignez_core.proof.arms import Arena
from alignez_core.proof.gate import weak_reasons
from alignez_core.proof.judges import Likelihoods, SelfJudge
from alignez_core.proof.report import prove
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import FitSpec, Persona
from alignez_core.spec.samples import Sample, of_split

pytestmark = pytest.mark.slow

PERSONA = Persona("formal", "slang")
BANK = tuple(persona_nano.query_bank())


def fitted(engine: TransformersEngine, persona: Persona, **settings: Any) -> FittedProfile:
    config = FitConfig(**{"method": "distill", "contrast": 1.0, "contrast_form": "full", **settings})
    return fit_profile(engine, FitSpec(persona, bank=BANK, config=config))


def reasons_for(engine: TransformersEngine, plan: EditPlan) -> tuple[str, ...]:
    """The gate's reasons against an edit as the formal persona's."""
    bank = persona_nano.query_bank()
    samples = [Sample(i, text, PERSONA, split="held_out") for i, text in enumerate(bank[100:124])]
    tune = [Sample(200 + i, text, PERSONA, split="tune") for i, text in enumerate(bank[124:126])]
    likelihoods = Likelihoods(engine)
    run = FitRun(engine, FitConfig(), lambda event: None)
    arena = Arena(run, SelfJudge(likelihoods), likelihoods)
    candidate = Candidate("x", "distill", edits=(plan,))
    return weak_reasons(prove(arena, candidate, samples, lambda s, strength: plan.scaled(strength), tune=tune))


@pytest.fixture(scope="module")
def formal(nano_engine: TransformersEngine) -> EditPlan:
    profile = fitted(nano_engine, PERSONA, tune_queries=0, held_out_queries=0)
    assert of_split(profile.samples, "held_out") == []
    return profile.edits[0]


def test_the_edit_of_the_opposite_persona_is_weak(nano_engine: TransformersEngine) -> None:
    swapped = fitted(nano_engine, Persona("slang", "formal"), tune_queries=0, held_out_queries=0).edits[0]
    assert any("net win" in reason for reason in reasons_for(nano_engine, swapped))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_directions_of_the_edit_s_size_are_weak(
    nano_engine: TransformersEngine, formal: EditPlan, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)

    def like(rows: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(rows.shape, generator=g)
        return drawn / drawn.norm(dim=-1, keepdim=True) * rows.norm(dim=-1, keepdim=True)

    random = EditPlan.low_rank(formal.layers, like(formal.U), like(formal.V), formal.c)
    assert reasons_for(nano_engine, random)


def test_five_times_the_dose_is_weak(nano_engine: TransformersEngine, formal: EditPlan) -> None:
    assert reasons_for(nano_engine, formal.scaled(5.0))


@pytest.mark.parametrize("method", ["distill", "auto"])
@pytest.mark.parametrize("words", [("zorbly", "quaxic"), ("plimful", "dorvish")])
def test_made_up_adjectives_are_weak(nano_engine: TransformersEngine, words: tuple[str, str], method: str) -> None:
    settings = {"contrast": None, "contrast_form": None} if method == "auto" else {}
    profile = fitted(nano_engine, Persona(*words), method=method, **settings)
    assert profile.quality == "weak"
    assert profile.quality_reasons
