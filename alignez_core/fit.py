"""Fit of a profile from its spec: samples, answers, readings, method, choice, proof.

`fit_profile` composes these steps and keeps no state of its own; `fit_run` holds the state of one fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.fit_run import STAGES, FitEvent, FitRun, TextChunk, TextRequest
from alignez_core.methods import method_of
from alignez_core.methods.base import Candidate, Material, Needs, plan_at
from alignez_core.methods.prompt import prompt_candidate
from alignez_core.prompts import SIDES, Prefix, characteristics_prompt, persona_prompt
from alignez_core.proof.arms import BARE, Arena
from alignez_core.proof.choice import Choice, choose
from alignez_core.proof.gate import data_reasons, weak_reasons
from alignez_core.proof.judges import Answered, Judge, Likelihoods, SelfJudge
from alignez_core.proof.report import prove
from alignez_core.readings import Readings, read_sides
from alignez_core.self_preference import given_answer, given_characteristics
from alignez_core.serving_plan import PlanSource
from alignez_core.spec.config import DEFAULT_CHARACTERISTICS_TOKENS, DEFAULT_PROMPT_MARGIN, FitConfig
from alignez_core.spec.limits import MethodName
from alignez_core.spec.persona import FitSpec
from alignez_core.spec.samples import Sample, make_samples, of_split, spread, with_text

#: Texts of the help and of the harm side, by sample index.
_Sides = tuple[dict[int, str], dict[int, str]]

#: Number of tune queries on which `Candidate.explained` is measured.
_PROBES = 4


@dataclass(frozen=True, eq=False)
class FittedProfile:
    """Content of a profile version. N fit samples, L edited layers, D hidden size, E embedding size.

    Args:
        config: settings, with those that the choice decided filled in.
        fingerprint: of the base model.
        samples: all samples with their splits.
        method: method of the edit or prefix; never "auto".
        edits: one plan per group of samples; empty if the version is only a prefix.
        prefix: None if the version is only an edit.
        embeddings: (N, E) unit rows of the fit split, in sample order; (0, E) if requests need no lookup.
        neighbor_rows: readings of the same samples at the edited layers, for plans fitted per request.
        report: the held-out proof.
        choice: chosen candidate, reason and measurements.
        diagnostics: JSON values.
        quality: "weak" always has reasons.
        dropped: sample index → reason why the sample is not used.
        sha256: content hash of settings, edits, prefix and all rows that edits depend on.
    """

    spec: FitSpec
    config: FitConfig
    fingerprint: str
    samples: tuple[Sample, ...]
    method: MethodName
    edits: tuple[EditPlan, ...]
    prefix: Prefix | None
    embeddings: Tensor
    neighbor_rows: Readings | None
    report: dict[str, Any]
    choice: dict[str, Any]
    diagnostics: dict[str, Any]
    quality: Literal["good", "weak"]
    quality_reasons: tuple[str, ...] = ()
    dropped: Mapping[int, str] = field(default_factory=dict)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", _content_hash(self))

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, ascending; empty without an edit."""
        return self.edits[0].layers if self.edits else ()

    @property
    def candidate(self) -> Candidate:
        """What a request is served with."""
        return Candidate(
            str(self.choice["chosen"]), self.method, edits=self.edits, prefix=self.prefix,
            neighbor_rows=self.neighbor_rows,
        )  # fmt: skip

    @property
    def fit_samples(self) -> list[Sample]:
        """The samples of the fit split."""
        return of_split(self.samples, "fit")

    @property
    def looked_up(self) -> tuple[int, ...]:
        """Sample indices of the rows of `embeddings`; empty if requests need no lookup."""
        if self.neighbor_rows is not None:
            return self.neighbor_rows.samples
        return tuple(s.index for s in self.fit_samples) if len(self.embeddings) else ()

    def plan(self, strength: float = 1.0, group: int = 0) -> EditPlan | None:
        """The edit of a group of queries, without a lookup; None if the version is only a prefix."""
        if not self.edits:
            return None
        return plan_at(self.method, self.config, self.edits[group], self.config.strength * strength)


def fit_profile(
    engine: Engine,
    spec: FitSpec,
    progress: Callable[[FitEvent], None] | None = None,
    resume: Sequence[TextChunk] = (),
    judge: Judge | None = None,
) -> FittedProfile:
    """Fits a profile on data made by the model itself, chooses its form and evaluates it on held-out queries.

    Args:
        engine: the base model; other requests may use it at the same time.
        spec: persona, queries, pairs, settings.
        progress: called between batches. An exception that it raises (`FitCancelled`, a lost lease) stops the fit.
        resume: chunks of an interrupted fit of the same spec; their texts are not generated again.
        judge: compares answers; None: `SelfJudge` with the same model.
    Raises: InvalidInput, LayerOutOfRange, TooFewSamples: the spec does not fit the model or its own queries.
        DegenerateEmbeddings: nothing to fit on. JudgeUnavailable. EngineCannotWalk. OutOfMemory: from the engine.
    """
    config = spec.config
    config.check_model(engine.info.n_layers)
    method = method_of(config.method)
    needs = method.needs(config)
    if needs.walks:
        engine.walk(()).close()  # raises EngineCannotWalk before anything is generated
    run = FitRun(engine, config, progress or (lambda event: None), resume)
    samples, dropped = _samples(run, spec)
    fit = of_split(samples, "fit")
    if _looks_up(config, fit):
        config.check_samples(len(fit))

    characteristics = _characteristics(run, fit) if needs.characteristics else ({}, {})
    help_, harm = _answers(run, samples, needs)
    readings = _readings(run, fit, characteristics, (help_, harm)) if needs.readings else None
    tune = with_text(of_split(samples, "tune"), help_)
    answered = with_text(fit, help_) if needs.help_answers else fit
    if not answered:
        raise DegenerateEmbeddings(f"none of the {len(fit)} answers under the persona holds any text")
    groups = {sample.group for sample in answered}
    for sample in fit:
        if sample.group not in groups:
            raise DegenerateEmbeddings(f"all answers as {sample.persona.preferred!r} are empty, so nothing to fit on")
    chosen_rows = spread(answered, config.answers)
    if config.conditional is False:  # one plan for all queries, each read under its own phrases
        chosen_rows, tune = ([replace(s, group=0) for s in rows] for rows in (chosen_rows, tune))
    report_fitting = partial(run.report, "fitting")
    material = Material(engine, config, chosen_rows, tune[:_PROBES], help_, harm, readings, report_fitting)
    report_fitting(0, 1)
    candidates = method.candidates(material)
    report_fitting(1, 1)

    likelihoods = Likelihoods(engine)
    arena = Arena(run, judge or SelfJudge(likelihoods), likelihoods)
    source = PlanSource(engine, config, fit, readings)
    # A prefix holds one persona, so with several groups the persona as a prompt is no alternative.
    prompt = prompt_candidate(fit) if config.method == "auto" and not any(s.group for s in fit) else None
    margin = DEFAULT_PROMPT_MARGIN if config.prompt_margin is None else config.prompt_margin
    chosen = choose(arena, candidates, tune, source.plan, prompt=prompt, prompt_margin=margin)
    config = _resolved(config, chosen.candidate)
    held_out = of_split(samples, "held_out")
    report = prove(arena, chosen.candidate, held_out, source.dosed(chosen.candidate), tune=tune)
    run.report("evaluation", 1, 1)
    reasons = weak_reasons(report) + data_reasons(fit, help_, harm, given_verdicts(arena, fit))
    looks_up = source.looks_up(chosen.candidate)
    return FittedProfile(
        spec=spec,
        config=config,
        fingerprint=engine.info.fingerprint,
        samples=tuple(samples),
        method=chosen.candidate.method,
        edits=chosen.candidate.edits,
        prefix=chosen.candidate.prefix,
        embeddings=source.embeddings if looks_up else torch.zeros(0, engine.info.hidden_size),
        neighbor_rows=chosen.candidate.neighbor_rows,
        report={**report, "explained": {str(k): round(v, 4) for k, v in chosen.candidate.explained.items()}},
        choice={"chosen": chosen.candidate.name, "reason": chosen.reason, "trace": list(chosen.trace)},
        diagnostics=_diagnostics(run, chosen, dropped, samples),
        quality="weak" if reasons else "good",
        quality_reasons=reasons,
        dropped=dropped,
    )


def _resolved(config: FitConfig, candidate: Candidate) -> FitConfig:
    """The settings with those that the choice decided filled in, as a version stores them."""
    decided = ("contrast", "contrast_form", "rank", "ridge", "layers")
    if candidate.method in ("prompt", "urial"):
        settings: dict[str, Any] = dict.fromkeys(decided)
    else:
        settings = {name: value for name, value in candidate.settings.items() if name in decided}
    if config.method == "auto":
        settings["prompt_margin"] = None
    return replace(config, method=candidate.method, **settings)


def _looks_up(config: FitConfig, fit: Sequence[Sample]) -> bool:
    """True if the settings and queries allow that requests look up their nearest fit queries."""
    if config.conditional is False or config.method in ("caa", "transport", "prompt", "urial"):
        return False
    return config.method == "alignez" or any(sample.group for sample in fit)


def _samples(run: FitRun, spec: FitSpec) -> tuple[list[Sample], dict[int, str]]:
    """All samples, and the reasons why some are not used: prompts or answers that exceed the context."""
    given = [q.text for q in spec.queries] + [p.query for p in spec.pairs]
    own = run.own_queries(given or list(spec.bank), len(given))
    samples, dropped = [], {}
    room = run.engine.info.context_length - run.config.answer_tokens
    form = run.engine.prompt_format
    for sample in make_samples(spec, own):
        prompts = [persona_prompt(form, sample.query, sample.persona, side) for side in SIDES]
        longest = max(len(run.engine.tokenize(prompt)) for prompt in prompts)
        given_tokens = max((len(run.engine.tokenize(text)) for text in sample.given or ()), default=0)
        if longest > room:
            dropped[sample.index] = f"{longest} prompt tokens leave no room for an answer in the context"
        elif longest + given_tokens > run.engine.info.context_length:
            dropped[sample.index] = f"{longest} prompt tokens and {given_tokens} of a given answer exceed the context"
        if sample.index in dropped:
            sample = replace(sample, split="unused")
        samples.append(sample)
    if not of_split(samples, "fit"):
        raise DegenerateEmbeddings(f"no query leaves room for {run.config.answer_tokens} new tokens in the context")
    return samples, dropped


def _characteristics(run: FitRun, fit: Sequence[Sample]) -> _Sides:
    """Characteristics of either side's answers in the model's words (A.4.1)."""
    form = run.engine.prompt_format
    limit = run.config.characteristics_tokens or DEFAULT_CHARACTERISTICS_TOKENS
    requests = []
    for sample in fit:
        for i, side in enumerate(SIDES):
            kind = f"{side}_characteristics"
            if sample.given is not None:
                run.give(kind, {sample.index: given_characteristics(sample.given[i])})
            prompt = characteristics_prompt(form, sample.query, sample.persona, side)
            requests.append(TextRequest(kind, sample.index, prompt, salt=kind, max_tokens=limit))
    made = run.texts("characteristics", requests)
    help_, harm = ({i: text.strip() for i, text in made[f"{side}_characteristics"].items()} for side in SIDES)
    return help_, harm


def _answers(run: FitRun, samples: Sequence[Sample], needs: Needs) -> _Sides:
    """The model's answers under the persona, and under its opposite if the method needs them.

    On the tune and held-out splits these are the prompted arm of choice and proof; the bare arm's are made with them.
    """
    form, requests = run.engine.prompt_format, []
    answered = {s.index for s in spread(of_split(samples, "fit"), run.config.answers)}
    for sample in samples:
        if sample.split == "unused":
            continue
        # Given answers are for fitting only: on the other splits the prompted arm is the model itself.
        if sample.given is not None and sample.split == "fit":
            help_, harm = (given_answer(run.engine, text) for text in sample.given)
            run.give("help_response", {sample.index: help_})
            run.give("harm_response", {sample.index: harm})
        if sample.split == "fit" and not ((needs.help_answers and sample.index in answered) or needs.harm_answers):
            continue
        prompt = persona_prompt(form, sample.query, sample.persona, "help")
        requests.append(TextRequest("help_response", sample.index, prompt, salt="answer/alone"))
        if needs.harm_answers and sample.split == "fit":
            prompt = persona_prompt(form, sample.query, sample.persona, "harm")
            requests.append(TextRequest("harm_response", sample.index, prompt, salt="answer/alone"))
        if sample.split != "fit":
            requests.append(TextRequest(f"{BARE}/alone", sample.index, form.wrap(sample.query), salt="answer/alone"))
    made = run.texts("responses", requests)
    return made.get("help_response", {}), dict(run.given("harm_response"))


def _readings(run: FitRun, fit: Sequence[Sample], characteristics: _Sides, answers: _Sides) -> Readings:
    run.report("readings", 0, len(fit))
    representation = run.config.representation or "prompt"
    help_, harm = characteristics if representation == "prompt" else answers
    kept = fit if representation == "prompt" else with_text(with_text(fit, help_), harm)
    if not kept:
        raise DegenerateEmbeddings("no sample has text on both sides to read")
    readings = read_sides(run.engine, kept, help_, harm, representation)
    run.report("readings", len(kept), len(fit))
    return readings


def given_verdicts(arena: Arena, fit: Sequence[Sample]) -> list[int]:
    """The judge's verdicts on ground-truth pairs: +1 if the preferred answer shows the persona better."""
    pairs = [(s, s.given) for s in fit if s.given is not None]
    preferred, dispreferred = ([Answered(s, given[i]) for s, given in pairs] for i in (0, 1))
    return arena.judge.compare(preferred, dispreferred) if pairs else []


def _diagnostics(run: FitRun, chosen: Choice, dropped: Mapping[int, str], samples: Sequence[Sample]) -> dict[str, Any]:
    """Diagnostics beside the report: cosines, energies, layer scores, tokens, seconds per stage."""
    return {
        "layers": list(chosen.candidate.edits[0].layers) if chosen.candidate.edits else [],
        "settings": dict(chosen.candidate.settings),
        **chosen.candidate.diagnostics,
        "explained": {str(layer): round(share, 4) for layer, share in chosen.candidate.explained.items()},
        "splits": {split: len(of_split(samples, split)) for split in ("fit", "tune", "held_out")},
        "dropped_queries": len(dropped),
        "last_attempt": {
            "resumed_texts": run.resumed,
            "tokens_generated": run.tokens,
            "seconds": {stage: round(run.seconds[stage], 3) for stage in STAGES},
        },
    }


def _content_hash(profile: FittedProfile) -> str:
    sha = hashlib.sha256(b"alignez-profile-2")
    prefix = None if profile.prefix is None else [profile.prefix.system, [list(e) for e in profile.prefix.examples]]
    head = [profile.fingerprint, profile.method, profile.config.to_dict(), [p.sha256 for p in profile.edits], prefix]
    sha.update(json.dumps(head, sort_keys=True).encode())
    rows = [profile.embeddings]
    if profile.neighbor_rows is not None:
        rows += [profile.neighbor_rows.help, profile.neighbor_rows.harm]
    for value in rows:
        sha.update(value.contiguous().numpy().astype("<f4").tobytes())
    return sha.hexdigest()
