"""The choice among a method's candidates on the tune split: largest net win within the bounds.

Two rounds: all candidates on single turns, then the best few where users are (under a caller's own system message, in a
third turn, in long answers), where repetition appears that single turns do not show.
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
from alignez_core.proof.bounds import MAX_COHERENCE, MAX_REPETITION
from alignez_core.spec.samples import Sample

#: Candidates that reach the second round, and queries asked in each situation there.
_FINALISTS = 3
#: Share of the bounds that a candidate may use and still count as well within them: a handful of tune queries measures
#: coherence to about a fifth of its bound, and the gate asks again on others.
_COMFORT = 0.8
_PER_SITUATION = 3
#: Long enough for loops to show, shorter than the proof's for time.
_LONG_TOKENS = 128

PlanOf = Callable[[Candidate, Sample], EditPlan | None]


@dataclass(frozen=True)
class Choice:
    """The chosen candidate with the evidence.

    Args:
        reason: one sentence. trace: every measurement, JSON-able, in the order made.
    """

    candidate: Candidate
    reason: str
    trace: tuple[dict[str, Any], ...] = ()


@dataclass
class _Standing:
    """A candidate's results so far."""

    candidate: Candidate
    nets: list[tuple[float, int]]  #: net win over the prompt and number of queries, one per trial
    strain: float = 0.0  #: share of its bounds that it uses, the largest of its trials
    coherence: float = -math.inf  #: nats per token beyond the prompted answers, the largest of its trials

    @property
    def within(self) -> bool:
        """True within the bounds."""
        return self.strain <= 1

    @property
    def net(self) -> float:
        """Net win over the prompt, mean over queries: a situation of three does not outvote eight plain ones."""
        return sum(net * n for net, n in self.nets) / max(1, sum(n for _, n in self.nets))

    @property
    def rank(self) -> tuple[bool, float, bool, float]:
        """Sort key, best first: within the bounds (else the least strain), well within them, then net win."""
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
        samples: of the tune split. plan_of: the edit that a sample's request would get from a candidate.
        prompt: the persona as a prompt, chosen when its net win over the best candidate exceeds `prompt_margin`,
            which is what its tokens in every request are worth; None: not to be chosen.
    Raises: JudgeUnavailable. FitCancelled and the like: from the progress callback.
    """
    if not samples or (len(candidates) == 1 and prompt is None):
        return Choice(candidates[0], "the only candidate" if len(candidates) == 1 else "no query to choose on")
    trace: list[dict[str, Any]] = []
    first = with_room(arena.run, [Trial(tuple(samples))])
    standings = [_Standing(candidate, []) for candidate in candidates]
    _round(arena, standings, first, plan_of, trace)
    standings.sort(key=lambda s: s.rank)
    finalists = _finalists(standings)
    history = [(sample.query, arena.run.given(f"{BARE}/alone").get(sample.index, "")) for sample in samples[-2:]]
    history = [(query, answer) for query, answer in history if answer.strip()]
    second = with_room(arena.run, user_trials(samples, history, _PER_SITUATION, _LONG_TOKENS))
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
            f"than its tokens are worth ({prompt_margin:g})"
        )
        return Choice(prompt, reason, tuple(trace))
    where = "within the bounds" if best.within else "though beyond the bounds, as every candidate is"
    return Choice(best.candidate, f"largest net win over the prompt, {lead:+.2f}, {where}", tuple(trace))


def _finalists(standings: Sequence[_Standing]) -> list[_Standing]:
    """The best so far, and weaker ones with a similar score, for the strongest often repeat themselves in long answers.

    Args:
        standings: best first.
    """
    best, *others = standings
    near = [s for s in others if s.within and s.net >= min(best.net / 2, best.net - 0.1)]
    gentle = sorted(near or others, key=lambda s: s.coherence)
    # Not only the very gentlest: one from the middle, too.
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
    """The most repetition that is within the bounds beside the bare and the prompted answers."""
    return max(base[BARE].repetition, base[PROMPT].repetition) + MAX_REPETITION


def strain(found: Measured, base: Mapping[str, Measured], alone: bool = True) -> float:
    """Share of its bounds that an arm uses, the larger of coherence and repetition; above 1 it is beyond them.

    Args:
        alone: in queries asked alone, where coherence is bounded (`bounds`).
    """
    coherence = (base[PROMPT].logprob - found.logprob) / MAX_COHERENCE if alone else 0.0
    free = max(base[BARE].repetition, base[PROMPT].repetition)
    return max(0.0, coherence, (found.repetition - free) / MAX_REPETITION)
