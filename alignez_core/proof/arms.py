"""Arms of a comparison: the same queries and seeds, answered by the bare model, the persona's prompt and candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alignez_core.editing import EditPlan
from alignez_core.fit_run import FitRun, Stage, TextRequest
from alignez_core.methods.base import Candidate
from alignez_core.prompts import ALONE, Prefix, Situation, persona_prompt, render
from alignez_core.proof.judges import Answered, Judge, Likelihoods
from alignez_core.proof.measures import Comparison, mean, repetition, words
from alignez_core.spec.samples import Sample

#: A caller's own system message, as many applications send one.
OWN_SYSTEM = "You work for a small bookshop. Answer in complete sentences."
LONG_TOKENS = 200

BARE, PROMPT, EDITED = "bare", "prompt", "edited"


@dataclass(frozen=True)
class Arm:
    """One way to answer.

    Args:
        name: unique in its comparison. digest: of the candidate, "" for the bare and the prompted model; its texts are
            stored under both.
        persona: the persona's system text opens the conversation (the prompted model).
        prefix: a version's own prefix. plan: the edit for a sample; None for the bare model.
    """

    name: str
    digest: str = ""
    persona: bool = False
    prefix: Prefix | None = None
    plan: Callable[[Sample], EditPlan | None] = lambda sample: None


BARE_ARM = Arm(BARE)
PROMPT_ARM = Arm(PROMPT, persona=True)


@dataclass(frozen=True)
class Trial:
    """Samples that are asked in one situation."""

    samples: tuple[Sample, ...]
    situation: Situation = ALONE


@dataclass(frozen=True)
class Measured:
    """One arm's answers in one trial, without a judge.

    Args:
        logprob: mean nats per token of the answers under the prompted model. repetition: mean over answers.
        words: mean length.
    """

    n: int
    logprob: float
    repetition: float
    words: float


class Arena:
    """Asks arms and compares their answers.

    Args:
        run: where texts are made and stored. judge: compares. likelihoods: of the fitted model, for coherence.
    """

    def __init__(self, run: FitRun, judge: Judge, likelihoods: Likelihoods) -> None:
        self.run = run
        self.judge = judge
        self.likelihoods = likelihoods

    def ask(self, stage: Stage, arms: Sequence[Arm], trials: Sequence[Trial]) -> dict[tuple[str, str], dict[int, str]]:
        """Answers of every arm in every trial, in as few batches as there is room for.

        Returns: (arm, situation) → text by sample index.
        """
        made = self.run.texts(stage, self._requests(arms, trials))
        return {
            (arm.name, trial.situation.name): made.get(kind_of(arm, trial.situation), {})
            for trial in trials
            for arm in arms
        }

    def prepare(self, stage: Stage, questions: Sequence[tuple[Sequence[Arm], Sequence[Trial]]]) -> None:
        """Makes the answers of several `ask`s at once, so that they share the engine's batch."""
        self.run.texts(stage, [r for arms, trials in questions for r in self._requests(arms, trials)])

    def _requests(self, arms: Sequence[Arm], trials: Sequence[Trial]) -> list[TextRequest]:
        form = self.run.engine.prompt_format
        requests = []
        for trial in trials:
            for arm in arms:
                kind = kind_of(arm, trial.situation)
                for sample in trial.samples:
                    prompt = (
                        persona_prompt(form, sample.query, sample.persona, "help", trial.situation)
                        if arm.persona
                        else render(form, sample.query, trial.situation, arm.prefix)
                    )
                    requests.append(
                        TextRequest(
                            kind, sample.index, prompt, arm.plan(sample),
                            salt=f"answer/{trial.situation.name}", max_tokens=trial.situation.max_tokens,
                        )
                    )  # fmt: skip
        return requests

    def measure(self, trial: Trial, texts: Mapping[int, str]) -> Measured:
        """Coherence, repetition and length of one arm's answers."""
        answered = self.answered(trial, texts)
        logprobs = [v for v in self.likelihoods.per_token(answered, "help") if v > float("-inf")]
        return Measured(
            len(answered),
            mean(logprobs),
            mean([repetition(a.text) for a in answered]),
            mean([words(a.text) for a in answered]),
        )

    def compare(self, trial: Trial, texts: Mapping[int, str], others: Mapping[int, str]) -> Comparison:
        """The judge's verdicts of one arm against another."""
        left, right = self.answered(trial, texts), self.answered(trial, others)
        return Comparison(tuple(self.judge.compare(left, right)))

    def answered(self, trial: Trial, texts: Mapping[int, str]) -> list[Answered]:
        """The trial's samples with their texts."""
        return [Answered(sample, texts[sample.index], trial.situation) for sample in trial.samples]


def candidate_arm(candidate: Candidate, plan: Callable[[Sample], EditPlan | None], name: str = EDITED) -> Arm:
    """A candidate as an arm; `plan` gives the edit that a sample's request would get."""
    return Arm(name, candidate.digest, prefix=candidate.prefix, plan=plan)


def kind_of(arm: Arm, situation: Situation) -> str:
    """The kind under which an arm's texts are stored; prompted answers are the model's own help answers."""
    if arm.name == PROMPT and situation.name == ALONE.name:
        return "help_response"
    whose = f"{arm.name} {arm.digest}" if arm.digest else arm.name
    return f"{whose}/{situation.name}"


def user_trials(
    samples: Sequence[Sample], history: Sequence[tuple[str, str]], count: int, long_tokens: int | None = None
) -> list[Trial]:
    """Trials in the situations of users: under a caller's own system message, in a third turn, in long answers.

    Args:
        samples: `count` of them are asked in each. history: earlier (query, bare answer) exchanges for the third turn.
        long_tokens: of the long answers; None: `LONG_TOKENS`.
    """
    asked = tuple(samples[:count])
    if not asked:
        return []
    trials = [Trial(asked, Situation("own_system", system=OWN_SYSTEM))]
    if len(history) >= 2:
        turns = tuple((query, answer.strip()) for query, answer in history[:2])
        trials.append(Trial(asked, Situation("third_turn", history=turns)))
    trials.append(Trial(asked, Situation("long", max_tokens=long_tokens or LONG_TOKENS)))
    return trials


def with_room(run: FitRun, trials: Sequence[Trial]) -> list[Trial]:
    """The trials with those samples whose longest prompt and answer fit the context; empty trials are left out."""
    engine = run.engine
    kept = []
    for trial in trials:
        tokens = trial.situation.max_tokens or run.config.answer_tokens
        room = engine.info.context_length - tokens
        samples = tuple(
            sample
            for sample in trial.samples
            if all(len(engine.tokenize(prompt)) <= room for prompt in _sides(run, sample, trial.situation))
        )
        if samples:
            kept.append(Trial(samples, trial.situation))
    return kept


def _sides(run: FitRun, sample: Sample, situation: Situation) -> list[str]:
    """The prompts under which a sample's answers are made and judged."""
    form = run.engine.prompt_format
    return [persona_prompt(form, sample.query, sample.persona, side, situation) for side in ("help", "harm")]
