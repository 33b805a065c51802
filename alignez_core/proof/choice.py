"""Choice among a method's candidates on the tune split: the largest net win within the bounds.

Round one asks all candidates in single turns. Round two asks the best of them in situations of real use (an
application's system message, a third turn, long answers), which show repetition that single turns do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignez_core.editing import EditPlan
from alignez_core.methods.base import Candidate
from alignez_core.prompts import ALONE
from alignez_core.proof.arms import (
    BARE,
    BARE_ARM,
    PROMPT,
    PROMPT_ARM,
    Arena,
    Measured,
    Trial,
    candidate_arm,
    user_trials,
    with_room,
)
from alignez_core.proof.gate import MAX_COHERENCE, MAX_REPETITION
from alignez_core.spec.samples import Sample

_FINALISTS = 3  #: candidates in the second round
_PER_SITUATION = 3  #: queries per situation in the second round
#: Largest share of a bound that counts as well within it. The few tune queries measure coherence to about a fifth of
#: its bound, and the gate measures again on other queries.
_COMFORT = 0.8
#: Maximum new tokens of a long answer: enough to show loops, and fewer than in the proof to save time.
_LONG_TOKENS = 128

PlanOf = Callable[[Candidate, Sample], EditPlan | None]


@dataclass(frozen=True)
class Choice:
    """The chosen candidate with its evidence.

    Args:
        reason: one sentence.
        trace: all measurements in order, JSON values.
    """

    candidate: Candidate
    reason: str
    trace: tuple[dict[str, Any], ...] = ()


@dataclass
class _Standing:
    """A candidate's results so far."""

    candidate: Candidate
    nets: list[tuple[float, int]]  #: net win over the prompt and number of queries, one per trial
    strain: float = 0.0  #: largest `strain` of its trials
    coherence: float = -math.inf  #: largest coherence of its trials, nats per token

    @property
    def within(self) -> bool:
        """True if the candidate is within the bounds."""
        return self.strain <= 1

    @property
    def net(self) -> float:
        """Net win over the prompt, weighted by the number of queries of each trial."""
        return sum(net * n for net, n in self.nets) / max(1, sum(n for _, n in self.nets))

    @property
    def rank(self) -> tuple[bool, float, bool, float]:
        """Sort key, best first: within the bounds (otherwise least strain), then well within them, then net win."""
        return not self.within, 0.0 if self.within else self.strain, self.strain > _COMFORT, -self.net


def choose(
    arena: Arena,
    candidates: Sequence[Candidate],
    samples: Sequence[Sample],
    plan_of: PlanOf,
    *,
    prompt: Candidate | None = None,
    prompt_margin: float = 0.0,
) -> Choice:
    """The best candidate on the tune split.

    Args:
        samples: samples of the tune split.
        plan_of: returns the edit that serving a candidate would apply to a sample.
        prompt: the persona as a prompt. It is chosen if its net win over the best candidate exceeds `prompt_margin`
            (the price of its tokens in every request) or if no candidate is within the bounds. None: never.
    Raises: JudgeUnavailable. Exceptions of the progress callback, such as FitCancelled.
    """
    if not samples or (len(candidates) == 1 and prompt is None):
        return Choice(candidates[0], "the only candidate" if len(candidates) == 1 else "no query to choose on")
    trace: list[dict[str, Any]] = []
    first = with_room(arena.run, [Trial(tuple(samples))])
    standings = [_Standing(candidate, []) for candidate in candidates]
    _round(arena, standings, first, plan_of, trace)
    standings.sort(key=lambda s: s.rank)
    finalists = _finalists(standings)
    second = user_trials(arena.run, samples, samples, _PER_SITUATION, _LONG_TOKENS)
    if second and len(finalists) > 1:
        _round(arena, finalists, second, plan_of, trace)
        finalists.sort(key=lambda s: s.rank)
    best = finalists[0]
    lead = best.net
    if prompt is not None and not best.within:
        return Choice(prompt, f"no edit stays within the bounds (best: {best.candidate.name})", tuple(trace))
    if prompt is not None and -lead > prompt_margin:
        reason = (
            f"the persona as a prompt beats the best edit ({best.candidate.name}) by a net win of {-lead:.2f}, more "
            f"than the margin of {prompt_margin:g}"
        )
        return Choice(prompt, reason, tuple(trace))
    where = "within the bounds" if best.within else "but beyond the bounds, like every candidate"
    return Choice(best.candidate, f"largest net win over the prompt, {lead:+.2f}, {where}", tuple(trace))


def _finalists(standings: Sequence[_Standing]) -> list[_Standing]:
    """The best candidate, and weaker edits of similar net win, because strong edits often repeat in long answers.

    Args:
        standings: best first.
    """
    best, *others = standings
    near = [s for s in others if s.within and s.net >= min(best.net / 2, best.net - 0.1)]
    gentle = sorted(near or others, key=lambda s: s.coherence)
    # The most coherent one, and the one in the middle.
    chosen = [gentle[i] for i in sorted({0, len(gentle) // 2})] if gentle else []
    return [best, *chosen[: _FINALISTS - 1]]


def _round(
    arena: Arena, standings: Sequence[_Standing], trials: Sequence[Trial], plan_of: PlanOf, trace: list[dict[str, Any]]
) -> None:
    arms = [
        candidate_arm(s.candidate, lambda sample, c=s.candidate: plan_of(c, sample), f"tune/{s.candidate.name}")  # type: ignore[misc]
        for s in standings
    ]
    texts = arena.ask("tuning", [BARE_ARM, PROMPT_ARM, *arms], trials)
    for trial in trials:
        where = trial.situation.name
        base = {name: arena.measure(trial, texts[name, where]) for name in (BARE, PROMPT)}
        for standing, arm in zip(standings, arms, strict=True):
            answers = texts[arm.name, where]
            found = arena.measure(trial, answers)
            over_prompt = arena.compare(trial, answers, texts[PROMPT, where])
            over_bare = arena.compare(trial, answers, texts[BARE, where])
            standing.nets.append((over_prompt.net, found.n))
            used = strain(found, base, alone=where == ALONE.name)
            standing.strain = max(standing.strain, used)
            standing.coherence = max(standing.coherence, base[PROMPT].logprob - found.logprob)
            trace.append(
                {
                    "candidate": standing.candidate.name, "situation": where, "n": found.n,
                    "net_over_prompt": round(over_prompt.net, 4), "net_over_bare": round(over_bare.net, 4),
                    "coherence": round(base[PROMPT].logprob - found.logprob, 4),
                    "repetition": round(found.repetition, 4),
                    "repetition_bound": round(repetition_bound(base), 4),
                    "within": used <= 1,
                }
            )  # fmt: skip


def repetition_bound(base: Mapping[str, Measured]) -> float:
    """Maximum repetition, given that of the bare and the prompted answers."""
    return max(base[BARE].repetition, base[PROMPT].repetition) + MAX_REPETITION


def strain(found: Measured, base: Mapping[str, Measured], alone: bool = True) -> float:
    """Share of its bounds that an arm uses: the larger of coherence and repetition; above 1 it exceeds them.

    Args:
        alone: True for queries asked alone, the only ones with a bound of coherence.
    """
    coherence = (base[PROMPT].logprob - found.logprob) / MAX_COHERENCE if alone else 0.0
    free = max(base[BARE].repetition, base[PROMPT].repetition)
    return max(0.0, coherence, (found.repetition - free) / MAX_REPETITION)
