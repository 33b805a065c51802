"""The gate: a version is "good" when the held-out proof shows that it works, else "weak" with reasons to act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignez_core.proof.bounds import MAX_COHERENCE
from alignez_core.spec.samples import Sample

#: Least net win over the bare model on held-out queries.
MIN_NET_WIN = 0.2
#: Least nats per token by which prompted answers are likelier under the persona than under the opposite one, and the
#: effect size that does as well (`report.expressiveness`). Below both the model does not tell the two apart, and a fit
#: amplifies noise, which a likelihood judge rewards. Measured (docs/effect.md): on SmolLM2-135M eight personas .029 and
#: more, three pairs of made-up adjectives .026 and less, a fourth .052 (the model gives it a meaning of its own); on
#: persona-nano, where a persona is a few decisive tokens, .027 and more with effects above 2, made-up ones .001.
MIN_CONTRAST, MIN_EFFECT = 0.027, 2.0
#: Fewer held-out queries show nothing.
MIN_HELD_OUT = 8


def weak_reasons(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Reasons why a report's version is weak; empty if it is good.

    Args:
        report: as `report.prove` makes it.
    """
    reasons: list[str] = []
    verdict = report["comparisons"]["over_bare"]
    if verdict["n"] < MIN_HELD_OUT:
        return (f"{verdict['n']} held-out queries are too few, {MIN_HELD_OUT} are needed; add queries",)
    expressed = report["expressiveness"]
    low = verdict["interval"][0]
    if expressed is not None and expressed["contrast"] < MIN_CONTRAST and expressed["effect"] < MIN_EFFECT:
        reasons.append(
            "the model hardly tells this persona from the opposite one even when prompted: "
            f"{expressed['contrast']:.3f} nats per token, {MIN_CONTRAST:g} are needed; use words that the model knows, "
            "or another model"
        )
    if verdict["net"] < MIN_NET_WIN:
        reasons.append(
            f"net win over the bare model is {verdict['net']:+.2f} on {verdict['n']} held-out queries, "
            f"{MIN_NET_WIN:+.2f} is needed"
        )
    elif low <= 0:
        reasons.append(
            f"the net win over the bare model, {verdict['net']:+.2f}, could be chance (its interval begins at "
            f"{low:+.2f}); judge on more held-out queries"
        )
    for row in report["situations"]:
        edited = row["arms"]["edited"]
        where = "" if row["situation"] == "alone" else f" ({row['situation'].replace('_', ' ')})"
        if row["situation"] == "alone" and edited["coherence"] > MAX_COHERENCE:
            reasons.append(
                f"answers{where} lose coherence: {edited['coherence']:.2f} nats per token beyond the prompted ones, "
                f"{MAX_COHERENCE:g} is the most; lower contrast or strength"
            )
        if edited["repetition"] > row["repetition_bound"]:
            reasons.append(
                f"answers{where} repeat themselves: {edited['repetition']:.2f} of their trigrams, "
                f"{row['repetition_bound']:.2f} is the most; lower contrast or strength"
            )
    return tuple(reasons)


def data_reasons(
    samples: Sequence[Sample], help_: Mapping[int, str], harm: Mapping[int, str], given_verdicts: Sequence[int] = ()
) -> tuple[str, ...]:
    """Faults of the data that a fit started from.

    Args:
        samples: of the fit split. help_, harm: answers by index.
        given_verdicts: of ground-truth pairs, the preferred answer against the dispreferred one.
    """
    reasons: list[str] = []
    texts = [help_.get(s.index, "").strip() for s in samples if s.index in help_]
    empty = sum(not text for text in texts)
    if texts and empty * 2 > len(texts):
        reasons.append(f"{empty} of {len(texts)} answers under the persona are empty; use another persona or model")
    present = [text for text in texts if text]
    if len(present) > 3 and len(set(present)) == 1:
        reasons.append("all answers under the persona are alike, whatever the query; use another persona or model")
    both = [s for s in samples if s.given and help_.get(s.index, "").strip() == harm.get(s.index, "").strip()]
    given = [s for s in samples if s.given]
    if given and 2 * len(both) > len(given):
        reasons.append(f"{len(both)} of {len(given)} pairs hold the same text on both sides")
    lost = sum(verdict < 0 for verdict in given_verdicts)
    if given_verdicts and 2 * lost > len(given_verdicts):
        reasons.append(
            f"the sides look swapped: in {lost} of {len(given_verdicts)} pairs the dispreferred answer shows the "
            "persona better"
        )
    return tuple(reasons)
