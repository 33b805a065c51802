"""The measurements of one model, persona, judge and seed: fits, arms of a comparison, verdicts on their answers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignez_core.editing import EditPlan
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import AlignezError
from alignez_core.fit import FittedProfile, fit_profile
from alignez_core.fit_run import FitRun, TextChunk, TextRequest
from alignez_core.models import persona_nano
from alignez_core.models.resolve import resolve_model
from alignez_core.prompts import ALONE, Prefix, Side, persona_prompt, render
from alignez_core.proof.arms import (
    BARE_ARM,
    PROMPT_ARM,
    Arena,
    Arm,
    Measured,
    Trial,
    candidate_arm,
    kind_of,
    with_room,
)
from alignez_core.proof.judges import Judge, Likelihoods, SelfJudge
from alignez_core.proof.measures import Comparison
from alignez_core.self_preference import clean, row_seed
from alignez_core.serving_plan import PlanSource
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName
from alignez_core.spec.persona import FitSpec, GivenPair, Persona
from alignez_core.spec.samples import Sample
from profiles.data_dir import default_model_cache
from research.data import QuerySets, query_sets
from research.runner import Row, Texts
from worker.judges import make_judge
from worker.settings import WorkerSettings

#: Requests that the engine runs at once; 128 in place of 64 give a fit 1.2 times its speed on two cores.
_SLOTS = 128


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from.

    Args:
        path: a directory or a hub id.
        key: names the model in rows and files.
    """

    path: str
    key: str

    @classmethod
    def of(cls, model: str) -> ModelSource:
        """Raises: SystemExit: a catalogue model is not on this machine."""
        try:
            path = resolve_model(model, default_model_cache())
        except AlignezError as error:
            raise SystemExit(str(error)) from error
        return cls(path, Path(path).name)

    @property
    def directory(self) -> Path:
        return Path(self.path)


@dataclass(frozen=True)
class Judged:
    """Measures of one arm's answers to a group of queries, and verdicts on them.

    Args:
        over: name of another arm → verdicts against it.
    """

    measured: Measured
    over: dict[str, Comparison]

    def row(self, prompted: Measured) -> Row:
        """The values as JSON. prompted: measures of the prompted model's answers, from which coherence counts."""
        return {
            **{f"over_{name}": list(comparison.verdicts) for name, comparison in self.over.items()},
            "coherence": round(prompted.logprob - self.measured.logprob, 4),
            "repetition": round(self.measured.repetition, 4),
            "words": round(self.measured.words, 1),
        }


def rows_of(judged: Mapping[str, Judged]) -> Row:
    """Arm → its row."""
    return {name: found.row(judged[PROMPT_ARM.name].measured) for name, found in judged.items()}


@contextmanager
def engine_of(model: str, args: argparse.Namespace) -> Iterator[TransformersEngine]:
    """The engine of a model, closed at the end. Raises: SystemExit: it cannot be loaded."""
    try:
        engine = TransformersEngine.load(
            ModelSource.of(model).path, args.device, args.dtype, threads=args.threads, max_slots=_SLOTS
        )
    except AlignezError as error:
        raise SystemExit(f"the model {model} cannot be loaded: {error}") from error
    with engine:
        yield engine


def persona_of(args: argparse.Namespace) -> Persona:
    """The persona of the options; persona-nano knows no "malicious and useless"."""
    nano = ModelSource.of(args.model).directory == persona_nano.MODEL_DIR
    default = Persona("cheerful", "gloomy") if nano else Persona()
    return Persona(args.preferred or default.preferred, args.dispreferred or default.dispreferred)


def caption(args: argparse.Namespace, personas: str = "") -> str:
    """The line above a table: model, persona, judge, answers, seeds.

    Args:
        personas: takes the place of the persona of the options.
    """
    persona = persona_of(args)
    who = personas or f"persona {persona.preferred!r} against {persona.dispreferred!r}"
    return (
        f"{ModelSource.of(args.model).key}, {who}, judge "
        f"`{args.judge}`, answers of {args.answer_tokens} tokens at temperature {args.temperature:g}, seeds: "
        f"{args.seeds}. Intervals are 95 %, over queries."
    )


class Lab:
    """Fits and comparisons of one model, persona and seed. All query sets share one numbering.

    Args:
        name: of the experiment, model and seed; texts of unfinished work are stored under it.
        judge: None: the model itself.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        persona: Persona,
        sets: QuerySets,
        config: FitConfig,
        folder: Path,
        name: str,
        judge: Judge | None = None,
    ) -> None:
        self.engine, self.persona, self.sets, self.config = engine, persona, sets, config
        self._folder, self._name, self._texts = folder / "texts", name, list[Texts]()
        self.samples: dict[str, list[Sample]] = {}
        for group, queries in {"fit": sets.fit, "tune": sets.tune, **sets.slices}.items():
            first = sum(map(len, self.samples.values()))
            self.samples[group] = [Sample(first + i, query, persona, "bank") for i, query in enumerate(queries)]
        likelihoods = Likelihoods(engine)
        self._judge = judge
        self.run = self._run("answers")
        self.arena = Arena(self.run, judge or SelfJudge(likelihoods), likelihoods)
        for group, samples in self.samples.items():
            kept = with_room(self.run, [Trial(tuple(samples))])
            self.samples[group] = list(kept[0].samples) if kept else []

    @classmethod
    def of(
        cls,
        engine: TransformersEngine,
        args: argparse.Namespace,
        experiment: str,
        seed: int,
        persona: Persona | None = None,
    ) -> Lab:
        """The lab of an experiment's options. persona: None: that of the options."""
        where = ModelSource.of(args.model)
        sets = query_sets(args.data, where.directory, args.fit_queries, args.tune_queries, args.queries)
        name = f"{experiment}-{where.key}-{seed}"
        chosen = persona or persona_of(args)
        return cls(engine, chosen, sets, config_of(args, seed), args.out, name, judge_of(args))

    def drop_without_room(self, groups: Sequence[str], prefix: Prefix) -> None:
        """Drops queries of some groups that leave no room for an answer in the context behind a prefix."""
        engine, room = self.engine, self.engine.info.context_length - self.config.answer_tokens
        for group in groups:
            prompts = [render(engine.prompt_format, s.query, prefix=prefix) for s in self.samples[group]]
            kept = zip(self.samples[group], prompts, strict=True)
            self.samples[group] = [sample for sample, prompt in kept if len(engine.tokenize(prompt)) <= room]

    def fit(
        self, method: MethodName, queries: Sequence[str] | None = None, label: str = "", **settings: Any
    ) -> FittedProfile:
        """A profile fitted on the fit queries (or the given ones), chosen on the tune queries, without a proof."""
        fit_on = self.sets.fit if queries is None else tuple(queries)
        chooses = method in ("auto", "distill")
        tune = self.sets.tune if chooses else ()
        if not chooses:
            settings = {"contrast": None, "contrast_form": None, **settings}
        config = replace(
            self.config, method=method, answers=len(fit_on), tune_queries=len(tune), held_out_queries=0,
            neighbors=min(settings.pop("neighbors", self.config.neighbors), len(fit_on)), **settings,
        )  # fmt: skip
        texts = self._text_file(label or method)
        spec = FitSpec(self.persona, bank=(*fit_on, *tune), config=config)
        return fit_profile(self.engine, spec, texts, texts.chunks, self._judge)

    def arm(self, name: str, profile: FittedProfile, prefix: Prefix | None = None) -> Arm:
        """A fitted profile as an arm, with the plan that serving would apply to each query."""
        source = PlanSource(self.engine, profile.config, profile.fit_samples, profile.neighbor_rows)
        candidate = replace(profile.candidate, prefix=prefix or profile.prefix)
        return candidate_arm(candidate, lambda sample: source.plan(candidate, sample), name)

    def arm_of_each(self, name: str, profiles: Mapping[str, FittedProfile]) -> Arm:
        """An arm whose queries are served with the profile of their group."""
        arms = {group: self.arm(name, profile) for group, profile in profiles.items()}
        of = {sample.index: arms[group] for group in profiles for sample in self.samples[group]}
        return Arm(name, plan=lambda sample: of[sample.index].plan(sample))

    def answers(self, arms: Sequence[Arm], groups: Sequence[str]) -> dict[str, dict[str, dict[int, str]]]:
        """Group → arm → sample index → text; all arms and groups share the engine's batch."""
        trials = {group: Trial(tuple(self.samples[group])) for group in groups}
        self.arena.prepare("evaluation", [(arms, list(trials.values()))])
        found = {group: self.arena.ask("evaluation", arms, [trial]) for group, trial in trials.items()}
        return {group: {arm.name: found[group][arm.name, ALONE.name] for arm in arms} for group in groups}

    def give(self, name: str, group: str, answer: Callable[[list[Sample], list[int]], list[str]]) -> Arm:
        """An arm whose answers `answer` makes from samples and the seeds that the engine would use."""
        arm = Arm(name)
        known = self.run.given(kind_of(arm, ALONE))
        missing = [sample for sample in self.samples[group] if sample.index not in known]
        seeds = [row_seed(self.config.seed, sample.index, f"answer/{ALONE.name}") for sample in missing]
        texts = [clean(text.rstrip()) for text in answer(missing, seeds)] if missing else []
        made = {sample.index: text for sample, text in zip(missing, texts, strict=True)}
        self.run.give(kind_of(arm, ALONE), made)
        chunk = TextChunk(kind_of(arm, ALONE), tuple(made), tuple(texts))
        self.run.report("evaluation", len(made), len(made), chunk if made else None)
        return arm

    def judged(
        self, arms: Sequence[Arm], group: str, over: Sequence[str] = (BARE_ARM.name, PROMPT_ARM.name)
    ) -> dict[str, Judged]:
        """Arm → measures of its answers in one group, and verdicts against the arms named in `over`.

        The bare and the prompted model are always among the arms.
        """
        asked = [BARE_ARM, PROMPT_ARM, *arms]
        texts, trial = self.answers(asked, [group])[group], Trial(tuple(self.samples[group]))
        found = {}
        for arm in asked:
            answers = texts[arm.name]
            against = {other: self.arena.compare(trial, answers, texts[other]) for other in over}
            found[arm.name] = Judged(self.arena.measure(trial, answers), against)
        return found

    def own_answers(self, side: Side, group: str = "fit") -> Mapping[int, str]:
        """The model's answers under the persona ("help") or its opposite ("harm")."""
        kind, form = f"{side}_response", self.engine.prompt_format
        requests = [
            TextRequest(kind, s.index, persona_prompt(form, s.query, s.persona, side), salt=f"answer/{ALONE.name}")
            for s in self.samples[group]
        ]
        return self.run.texts("responses", requests)[kind]

    def close(self) -> None:
        """Removes the stored texts: the rows made from them are stored."""
        for texts in self._texts:
            texts.forget()

    def _run(self, label: str) -> FitRun:
        texts = self._text_file(label)
        return FitRun(self.engine, self.config, texts, texts.chunks)

    def _text_file(self, label: str) -> Texts:
        name = f"{self._name}-{label}".replace(" ", "_").replace("/", "_")
        texts = Texts(self._folder / f"{name}.jsonl", f"{self._name} {label}")
        self._texts.append(texts)
        return texts


def pair_samples(pairs: Sequence[GivenPair], persona: Persona) -> list[Sample]:
    """Ground-truth pairs as samples of the fit split, numbered from 0."""
    return [Sample(i, pair.query, persona, "pair", (pair.preferred, pair.dispreferred)) for i, pair in enumerate(pairs)]


def config_of(args: argparse.Namespace, seed: int) -> FitConfig:
    """Settings that all methods of an experiment share."""
    config = FitConfig(seed=seed, answer_tokens=args.answer_tokens, temperature=args.temperature, judge=args.judge)
    return config if args.contrast is None else replace(config, contrast=args.contrast, contrast_form="full")


def judge_of(args: argparse.Namespace) -> Judge | None:
    """The judge of the options. Raises: SystemExit: it is not available."""
    try:
        return make_judge(args.judge, WorkerSettings(device=args.device, dtype=args.dtype))
    except AlignezError as error:
        raise SystemExit(str(error)) from error


def fixed(plan: EditPlan) -> Callable[[Sample], EditPlan | None]:
    """The same plan for every query."""
    return lambda sample: plan
