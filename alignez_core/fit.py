"""From a spec to a proven profile: samples, own answers, readings, method, choice, proof.

`fit_profile` only composes and keeps no state outside its arguments; `fit_run` holds the account of one fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.fit_run import STAGES, FitEvent, FitRun, TextChunk, TextRequest, only
from alignez_core.methods import method_of
from alignez_core.methods.base import Candidate, Material, Needs, plan_at
from alignez_core.methods.prompt import prompt_candidate
from alignez_core.prompts import Prefix, characteristics_prompt, persona_prompt
from alignez_core.proof.arms import BARE, Arena
from alignez_core.proof.choice import Choice, choose
from alignez_core.proof.gate import data_reasons, weak_reasons
from alignez_core.proof.judges import Answered, Judge, Likelihoods, SelfJudge
from alignez_core.proof.report import prove
from alignez_core.readings import Readings, read_sides
from alignez_core.self_preference import TextPair, given_answer, given_characteristics
from alignez_core.serving_plan import PlanSource
from alignez_core.spec.config import DEFAULT_CHARACTERISTICS_TOKENS, DEFAULT_PROMPT_MARGIN, FitConfig
from alignez_core.spec.limits import MethodName
from alignez_core.spec.persona import FitQuery, FitSpec, GivenPair, Persona
from alignez_core.spec.samples import Sample, make_samples, of_split, spread

__all__ = [
    "STAGES", "FitConfig", "FitEvent", "FitQuery", "FitSpec", "FittedProfile", "GivenPair", "Persona",
    "TextChunk", "fit_profile",
]  # fmt: skip

#: Tune queries on whose prompted answers the share of the gap that an edit fits is measured.
_PROBES = 4


@dataclass(frozen=True, eq=False)
class FittedProfile:
    """Everything that a profile version stores. N fit samples, L edited layers, D hidden size, E embedding size.

    Args:
        config: with every setting resolved that the choice resolved. fingerprint: of the model it was fitted on.
        samples: all of them, with their splits. method: that made the edit or the prefix; `auto` is resolved.
        edits: one plan per group of samples; empty: the version is a prefix alone. prefix: None: an edit alone.
        embeddings: (N, E) unit rows of the fit split, in sample order; (0, E) where requests look nothing up.
        neighbor_rows: readings of the same samples at the edited layers, for plans fitted per request.
        report: the held-out proof. choice: why this candidate. diagnostics: JSON-able.
        quality: "weak" never comes without reasons.
        sha256: content hash over settings, edits, prefix and all rows that an edit can depend on.
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
        """The edited layers, ascending; none for a prefix alone."""
        return self.edits[0].layers if self.edits else ()

    @property
    def fit_samples(self) -> list[Sample]:
        """The samples of the fit split: rows of `embeddings`."""
        return of_split(self.samples, "fit")

    @property
    def looked_up(self) -> tuple[int, ...]:
        """Sample indices of the rows of `embeddings`; none where requests look nothing up."""
        if self.neighbor_rows is not None:
            return self.neighbor_rows.samples
        return tuple(s.index for s in self.fit_samples) if len(self.embeddings) else ()

    def plan(self, strength: float = 1.0, group: int = 0) -> EditPlan | None:
        """The edit of a group of queries, without a lookup; None for a prefix alone."""
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
    """Fits a profile on the model's own data, chooses its form and proves it.

    Args:
        engine: the base model; shared with whatever else it serves.
        spec: persona, queries, pairs, settings.
        progress: called between batches; raising from it (`FitCancelled`, a lost lease) stops the fit there.
        resume: chunks of an earlier, interrupted run of the same spec; they are not generated again.
        judge: compares answers; None: the model's own likelihoods.
    Raises: InvalidInput, LayerOutOfRange, TooFewSamples: the spec does not fit the model or its own queries.
        DegenerateEmbeddings: nothing to fit on. JudgeUnavailable. EngineCannotWalk. OutOfMemory: from the engine.
    """
    config = spec.config
    config.check_model(engine.info.n_layers)
    method = method_of(config.method)
    needs = method.needs(config)
    if needs.walks:
        engine.walk(()).close()  # an engine that cannot says so before anything is generated
    run = FitRun(engine, config, progress or (lambda event: None), resume)
    samples, dropped = _samples(run, spec)
    fit = of_split(samples, "fit")
    if _looks_up(config, fit):
        config.check_samples(len(fit))

    characteristics = _characteristics(run, fit, needs)
    help_, harm = _answers(run, samples, needs)
    readings = _readings(run, fit, characteristics, help_, harm, needs)
    tune = only(of_split(samples, "tune"), help_)
    answered = only(fit, help_) if needs.help_answers else fit
    if not answered:
        raise DegenerateEmbeddings(f"none of the {len(fit)} answers under the persona holds any text")
    _require_every_group(fit, answered)
    chosen_rows = spread(answered, config.answers)
    if config.conditional is False:  # one plan for all, though each query is read under its own phrases
        chosen_rows, tune = ([replace(s, group=0) for s in rows] for rows in (chosen_rows, tune))
    material = Material(engine, config, chosen_rows, tune[:_PROBES], help_, harm, readings, run.reporter("fitting"))
    run.report("fitting", 0, 1)
    candidates = method.candidates(material)
    run.report("fitting", 1, 1)

    likelihoods = Likelihoods(engine)
    arena = Arena(run, judge or SelfJudge(likelihoods), likelihoods)
    source = PlanSource(engine, config, fit, readings)
    chosen = _choose(arena, candidates, tune, source, config, fit)
    config = resolved(config, chosen.candidate)
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


def _require_every_group(fit: Sequence[Sample], answered: Sequence[Sample]) -> None:
    """Raises: DegenerateEmbeddings: a group of queries without any answer, naming its persona."""
    there = {sample.group for sample in answered}
    for sample in fit:
        if sample.group not in there:
            raise DegenerateEmbeddings(f"all answers as {sample.persona.preferred!r} are empty, so nothing to fit on")


def resolved(config: FitConfig, candidate: Candidate) -> FitConfig:
    """The settings with what the choice decided, as a version stores them."""
    known = {"contrast", "contrast_form", "rank", "ridge", "layers"}
    settings = {name: value for name, value in candidate.settings.items() if name in known}
    if candidate.method in ("prompt", "urial"):
        settings = dict.fromkeys(("contrast", "contrast_form", "rank", "ridge", "layers"))
    if candidate.method != "auto" and config.method == "auto":
        settings["prompt_margin"] = None
    if isinstance(settings.get("layers"), list):
        settings["layers"] = tuple(settings["layers"])
    return replace(config, method=candidate.method, **settings)


def _looks_up(config: FitConfig, fit: Sequence[Sample]) -> bool:
    """True when requests will look up their nearest fit queries, as far as the settings and the queries say."""
    if config.conditional is False or config.method in ("caa", "transport", "prompt", "urial"):
        return False
    return config.method == "alignez" or any(sample.group for sample in fit)


def _samples(run: FitRun, spec: FitSpec) -> tuple[list[Sample], dict[int, str]]:
    """All samples, and why some are not used: their prompts and answers must fit the context."""
    given = [q.text for q in spec.queries] + [p.query for p in spec.pairs]
    own = run.own_queries(given or list(spec.bank), len(given))
    samples, dropped = [], {}
    room = run.engine.info.context_length - run.config.answer_tokens
    form = run.engine.prompt_format
    for sample in make_samples(spec, own):
        prompts = [persona_prompt(form, sample.query, sample.persona, side) for side in ("help", "harm")]
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


def _characteristics(run: FitRun, fit: Sequence[Sample], needs: Needs) -> dict[int, TextPair]:
    """Characteristics of either side's answers, in the model's words (A.4.1), where the method reads them."""
    if not needs.characteristics:
        return {}
    form = run.engine.prompt_format
    limit = run.config.characteristics_tokens or DEFAULT_CHARACTERISTICS_TOKENS
    requests = []
    for sample in fit:
        if sample.given is not None:
            pair = given_characteristics(sample.given)
            run.give("help_characteristics", {sample.index: pair.help})
            run.give("harm_characteristics", {sample.index: pair.harm})
        for side in ("help", "harm"):
            prompt = characteristics_prompt(form, sample.query, sample.persona, side)
            kind = f"{side}_characteristics"
            requests.append(TextRequest(kind, sample.index, prompt, salt=kind, max_tokens=limit))
    made = run.texts("characteristics", requests)
    help_, harm = made["help_characteristics"], made["harm_characteristics"]
    return {s.index: TextPair(help_[s.index].strip(), harm[s.index].strip()) for s in fit}


def _answers(run: FitRun, samples: Sequence[Sample], needs: Needs) -> tuple[dict[int, str], dict[int, str]]:
    """The model's own answers under the persona, of every split, and under its opposite where the method reads them.

    The tune and held-out splits' are the prompted arm of choice and proof; with them come the bare arm's.
    """
    form, requests = run.engine.prompt_format, []
    answered = {s.index for s in spread(of_split(samples, "fit"), run.config.answers)}
    for sample in samples:
        if sample.split == "unused":
            continue
        # Given answers are fitted on; on the other splits the prompted model answers for itself, as the proof says.
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
    given = {s.index for s in samples if s.given is not None and s.split == "fit"}
    harm_given = {i: text for i, text in run.given("harm_response").items() if i in given}
    return made.get("help_response", {}), {**harm_given, **made.get("harm_response", {})}


def _readings(
    run: FitRun,
    fit: Sequence[Sample],
    characteristics: Mapping[int, TextPair],
    help_: Mapping[int, str],
    harm: Mapping[int, str],
    needs: Needs,
) -> Readings | None:
    if not needs.readings:
        return None
    run.report("readings", 0, len(fit))
    pairs = {i: TextPair(help_[i], harm[i]) for i in help_ if i in harm}
    representation = run.config.representation or "prompt"
    kept = fit if representation == "prompt" else [s for s in fit if s.index in pairs and pairs[s.index].help.strip()
                                                   and pairs[s.index].harm.strip()]  # fmt: skip
    if not kept:
        raise DegenerateEmbeddings("no sample has text on both sides to read")
    readings = read_sides(run.engine, kept, characteristics, pairs, representation)
    run.report("readings", len(kept), len(fit))
    return readings


def _choose(
    arena: Arena,
    candidates: Sequence[Candidate],
    tune: Sequence[Sample],
    source: PlanSource,
    config: FitConfig,
    fit: Sequence[Sample],
) -> Choice:
    # One prefix cannot be several personas, so with groups the prompt is not to be chosen.
    prompt = prompt_candidate(fit) if config.method == "auto" and not any(s.group for s in fit) else None
    margin = DEFAULT_PROMPT_MARGIN if config.prompt_margin is None else config.prompt_margin
    return choose(arena, candidates, tune, source.plan, prompt=prompt, prompt_margin=margin)


def given_verdicts(arena: Arena, fit: Sequence[Sample]) -> list[int]:
    """Of ground-truth pairs: does the preferred answer show the persona better than the dispreferred one?"""
    pairs = [s for s in fit if s.given is not None]
    if not pairs:
        return []
    left = [Answered(s, s.given[0]) for s in pairs if s.given]
    right = [Answered(s, s.given[1]) for s in pairs if s.given]
    return arena.judge.compare(left, right)


def _diagnostics(run: FitRun, chosen: Choice, dropped: Mapping[int, str], samples: Sequence[Sample]) -> dict[str, Any]:
    """Diagnostics of a fit, beside the report: cosines, energy, layer scores, tokens, seconds per stage."""
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
