"""The baselines that are fitted on ground-truth pairs: CAA and ITI, each with the best setting on the tune queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from alignez_core.engines.base import Engine
from alignez_core.methods import method_of
from alignez_core.methods.base import Material
from alignez_core.proof.arms import BARE, PROMPT, Arm, candidate_arm
from alignez_core.proof.choice import strain
from alignez_core.self_preference import given_answer
from alignez_core.spec.persona import GivenPair, Persona
from alignez_core.spec.samples import Sample
from research.hooked import HookedModel
from research.iti import ALPHAS, HEADS, fit_probes, shift_hooks
from research.lab import Lab, fixed, pair_samples


@dataclass(frozen=True)
class Chosen:
    """An arm with the setting that won on the tune queries."""

    arm: Arm
    setting: str


def caa(lab: Lab, pairs: Sequence[GivenPair]) -> Chosen:
    """CAA on the pairs; layer and multiplier by the tune queries."""
    samples = pair_samples(pairs, lab.persona)
    help_, harm = (dict(enumerate(side)) for side in sides(lab, pairs))
    candidates = method_of("caa").candidates(Material(lab.engine, lab.config, samples, help=help_, harm=harm))
    arms = {c.name: candidate_arm(c, fixed(c.edits[0]), f"caa {c.name}") for c in candidates}
    best = best_setting(lab, arms)
    plan = next(c.edits[0] for c in candidates if c.name == best)
    return Chosen(Arm("caa", plan=fixed(plan)), best)


def iti(lab: Lab, model: HookedModel, pairs: Sequence[GivenPair], groups: Sequence[str]) -> Chosen:
    """ITI on the pairs; number of heads and α by the tune queries. The arm has answers to the groups' queries only."""
    form = model.prompt_format
    prompts = [form.wrap(pair.query) for pair in pairs]
    texts = ([p + text for p, text in zip(prompts, side, strict=True)] for side in sides(lab, pairs))
    probes = fit_probes(model, *texts)
    most = model.n_layers * model.n_heads // 2
    grid = {f"{heads} heads, α {alpha:g}": (heads, alpha) for heads in HEADS if heads <= most for alpha in ALPHAS}

    def answer(setting: str, samples: list[Sample], seeds: list[int]) -> list[str]:
        prompts = [form.wrap(sample.query) for sample in samples]
        hooks, config = shift_hooks(model, probes, *grid[setting]), lab.config
        return model.generate(prompts, seeds, hooks, max_tokens=config.answer_tokens, temperature=config.temperature)

    arms = {setting: lab.give(f"iti {setting}", "tune", partial(answer, setting)) for setting in grid}
    best = best_setting(lab, arms)
    arm = Arm("iti")
    for group in groups:
        arm = lab.give("iti", group, partial(answer, best))
    return Chosen(arm, best)


def sides(lab: Lab, pairs: Sequence[GivenPair]) -> tuple[list[str], list[str]]:
    """The preferred and the dispreferred answers, as the model would generate them."""
    preferred = [given_answer(lab.engine, pair.preferred) for pair in pairs]
    return preferred, [given_answer(lab.engine, pair.dispreferred) for pair in pairs]


def best_setting(lab: Lab, arms: Mapping[str, Arm]) -> str:
    """The setting with the largest net win over the bare model on the tune queries, within the bounds of the choice.

    If none is within them, the one that exceeds them least.
    """
    found = lab.judged(list(arms.values()), "tune")
    base = {name: found[name].measured for name in (BARE, PROMPT)}

    def rank(setting: str) -> tuple[bool, float, float]:
        judged = found[arms[setting].name]
        used = strain(judged.measured, base)
        return used > 1, used if used > 1 else 0.0, -judged.over[BARE].net

    return min(arms, key=rank)


def with_room(engine: Engine, pairs: Sequence[GivenPair]) -> list[GivenPair]:
    """The pairs whose answers fit the model's context behind their query."""
    form, most = engine.prompt_format, engine.info.context_length - 1

    def fits(query: str, answer: str) -> bool:
        return len(engine.tokenize(form.wrap(query) + answer)) < most

    return [pair for pair in pairs if fits(pair.query, pair.preferred) and fits(pair.query, pair.dispreferred)]


def why_no_pairs(pairs: Sequence[GivenPair], persona: Persona) -> str:
    """Why the baselines are left out, or nothing."""
    if len(pairs) >= 5:
        return ""
    return f"no ground-truth pairs for {persona.preferred!r}: CAA and ITI are left out (see --data)"
