"""Arms of a comparison: the bare model, the persona as a prompt, and candidates answer the same queries and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alignez_core.editing import EditPlan
from alignez_core.fit_run import FitRun, Stage, TextRequest
from alignez_core.methods.base import Candidate
from alignez_core.prompts import ALONE, SIDES, Prefix, PromptFormat, Situation, persona_prompt, render
from alignez_core.proof.judges import Answered, Judge, Likelihoods
from alignez_core.proof.measures import Comparison, mean, repetition, words
from alignez_core.spec.samples import Sample, with_text

#: Example of an application's own system message.
OWN_SYSTEM = "You work for a small bookshop. Answer in complete sentences."
LONG_TOKENS = 200  #: maximum new tokens of a long answer in the proof

BARE, PROMPT, EDITED = "bare", "prompt", "edited"


@dataclass(frozen=True)
class Arm:
    """An arm of a comparison: the model with a prefix, an edit, both or neither.

    Args:
        name: unique in its comparison.
        digest: `Candidate.digest`; "" for the bare and the prompted model. Texts are stored under name and digest.
        persona: the persona's system message opens the conversation (the prompted model).
        prefix: the candidate's prefix.
        plan: returns the edit of a sample, or None.
    """

    name: str
    digest: str = ""
    persona: bool = False
    prefix: Prefix | None = None
    plan: Callable[[Sample], EditPlan | None] = lambda sample: None

    def prompt(self, form: PromptFormat, sample: Sample, situation: Situation = ALONE) -> str:
        """The arm's prompt of a sample in a situation."""
        if self.persona:
            return persona_prompt(form, sample.query, sample.persona, "help", situation)
        return render(form, sample.query, situation, self.prefix)


BARE_ARM = Arm(BARE)
PROMPT_ARM = Arm(PROMPT, persona=True)


@dataclass(frozen=True)
class Trial:
    """Samples to ask in one situation."""

    samples: tuple[Sample, ...]
    situation: Situation = ALONE


@dataclass(frozen=True)
class Measured:
    """Measures of one arm's answers in one trial that need no judge.

    Args:
        logprob: mean log-probability per token under the prompted model, nats.
        repetition: mean over answers.
        words: mean length of an answer.
    """

    n: int
    logprob: float
    repetition: float
    words: float


class Arena:
    """Asks arms and compares their answers.

    Args:
        run: generates and stores the texts.
        judge: compares answers.
        likelihoods: of the fitted model, for coherence.
    """

    def __init__(self, run: FitRun, judge: Judge, likelihoods: Likelihoods) -> None:
        self.run = run
        self.judge = judge
        self.likelihoods = likelihoods

    def ask(self, stage: Stage, arms: Sequence[Arm], trials: Sequence[Trial]) -> dict[tuple[str, str], dict[int, str]]:
        """Answers of every arm in every trial; missing ones are generated together.

        Returns: (arm, situation) → sample index → text.
        """
        made = self.run.texts(stage, self._requests(arms, trials))
        return {
            (arm.name, trial.situation.name): made.get(kind_of(arm, trial.situation), {})
            for trial in trials
            for arm in arms
        }

    def prepare(self, stage: Stage, questions: Sequence[tuple[Sequence[Arm], Sequence[Trial]]]) -> None:
        """Generates the answers of several later `ask` calls together, so that they share the engine's batch."""
        self.run.texts(stage, [r for arms, trials in questions for r in self._requests(arms, trials)])

    def _requests(self, arms: Sequence[Arm], trials: Sequence[Trial]) -> list[TextRequest]:
        form = self.run.engine.prompt_format
        requests = []
        for trial in trials:
            for arm in arms:
                kind = kind_of(arm, trial.situation)
                salt, max_tokens = f"answer/{trial.situation.name}", trial.situation.max_tokens
                for sample in trial.samples:
                    prompt = arm.prompt(form, sample, trial.situation)
                    requests.append(TextRequest(kind, sample.index, prompt, arm.plan(sample), salt, max_tokens))
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
        """The judge's verdicts on one arm's texts against another's."""
        left, right = self.answered(trial, texts), self.answered(trial, others)
        return Comparison(tuple(self.judge.compare(left, right)))

    def answered(self, trial: Trial, texts: Mapping[int, str]) -> list[Answered]:
        """The trial's samples with their answers."""
        return [Answered(sample, texts[sample.index], trial.situation) for sample in trial.samples]


def candidate_arm(candidate: Candidate, plan: Callable[[Sample], EditPlan | None], name: str = EDITED) -> Arm:
    """A candidate as an arm; `plan` returns the edit that serving would apply to a sample."""
    return Arm(name, candidate.digest, prefix=candidate.prefix, plan=plan)


def kind_of(arm: Arm, situation: Situation) -> str:
    """`TextChunk.kind` of an arm's texts. The prompted arm shares the answers that the fit made."""
    if arm.name == PROMPT and situation.name == ALONE.name:
        return "help_response"
    name = f"{arm.name} {arm.digest}" if arm.digest else arm.name
    return f"{name}/{situation.name}"


def user_trials(
    run: FitRun, samples: Sequence[Sample], earlier: Sequence[Sample], count: int, long_tokens: int | None = None
) -> list[Trial]:
    """Trials in situations of real use: an application's system message, a third turn, long answers.

    Args:
        samples: the first `count` are asked in each situation, if they fit the context.
        earlier: samples whose bare answers exist; the last two are the first turns of the third-turn conversations.
        long_tokens: maximum new tokens of the long answers; None: `LONG_TOKENS`.
    """
    bare = run.given(f"{BARE}/{ALONE.name}")
    history = tuple((s.query, bare[s.index].strip()) for s in with_text(earlier[-2:], bare))
    situations = [Situation("own_system", system=OWN_SYSTEM)]
    if len(history) == 2:
        situations.append(Situation("third_turn", history=history))
    situations.append(Situation("long", max_tokens=long_tokens or LONG_TOKENS))
    return with_room(run, [Trial(tuple(samples[:count]), situation) for situation in situations])


def with_room(run: FitRun, trials: Sequence[Trial]) -> list[Trial]:
    """The trials without samples whose prompt and answer may exceed the context, and without empty trials."""
    engine, form = run.engine, run.engine.prompt_format

    def fits(sample: Sample, situation: Situation) -> bool:
        room = engine.info.context_length - (situation.max_tokens or run.config.answer_tokens)
        prompts = (persona_prompt(form, sample.query, sample.persona, side, situation) for side in SIDES)
        return all(len(engine.tokenize(prompt)) <= room for prompt in prompts)

    kept = [Trial(tuple(s for s in trial.samples if fits(s, trial.situation)), trial.situation) for trial in trials]
    return [trial for trial in kept if trial.samples]
