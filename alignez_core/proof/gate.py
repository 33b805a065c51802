"""The gate: a version is "good" if the held-out proof shows that it works, else "weak" with reasons.

Imports no torch, because the API renders reports too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignez_core.spec.samples import Sample

#: Bound of coherence: nats per token by which answers are less likely than prompted ones under the prompted model.
#: It applies to queries asked alone. Elsewhere (late in a conversation, for example) the prompted model often does not
#: show the persona, and its likelihood does not measure the coherence of answers that do.
MAX_COHERENCE = 0.4
#: Bound of repetition beyond the larger of the bare and the prompted answers' repetition.
MAX_REPETITION = 0.06
#: Minimum net win over the bare model on held-out queries.
MIN_NET_WIN = 0.2
#: Minimum contrast (nats per token by which prompted answers are likelier under the persona than under its opposite),
#: and the effect size that suffices in its place (`report.expressiveness`). Below both, the model does not distinguish
#: the two personas, and a fit amplifies noise that a likelihood judge rewards. Measured (docs/effect.md): on
#: SmolLM2-135M 8 personas have .029 or more, 3 of 4 pairs of made-up adjectives .026 or less (the fourth .052); on
#: persona-nano, where few tokens decide a persona, personas have .027 or more with effects above 2, made-up ones .001.
MIN_CONTRAST, MIN_EFFECT = 0.027, 2.0
#: Minimum number of held-out queries.
MIN_HELD_OUT = 8


def weak_reasons(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Reasons why a version is weak; empty if it is good.

    Args:
        report: result of `report.prove`.
    """
    reasons: list[str] = []
    verdict = report["comparisons"]["over_bare"]
    if verdict["n"] < MIN_HELD_OUT:
        return (f"{verdict['n']} held-out queries are too few, {MIN_HELD_OUT} are needed; add queries",)
    expressed = report["expressiveness"]
    low = verdict["interval"][0]
    if expressed is not None and expressed["contrast"] < MIN_CONTRAST and expressed["effect"] < MIN_EFFECT:
        reasons.append(
            "the model hardly distinguishes this persona from its opposite even when prompted: "
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
            f"{low:+.2f}); use more held-out queries"
        )
    for row in report["situations"]:
        edited = row["arms"]["edited"]
        where = "" if row["situation"] == "alone" else f" ({row['situation'].replace('_', ' ')})"
        if row["situation"] == "alone" and edited["coherence"] > MAX_COHERENCE:
            reasons.append(
                f"answers{where} lose coherence: {edited['coherence']:.2f} nats per token beyond the prompted ones, "
                f"the maximum is {MAX_COHERENCE:g}; lower contrast or strength"
            )
        if edited["repetition"] > row["repetition_bound"]:
            reasons.append(
                f"answers{where} repeat themselves: {edited['repetition']:.2f} of their trigrams, "
                f"the maximum is {row['repetition_bound']:.2f}; lower contrast or strength"
            )
    return tuple(reasons)


def data_reasons(
    samples: Sequence[Sample], help_: Mapping[int, str], harm: Mapping[int, str], given_verdicts: Sequence[int] = ()
) -> tuple[str, ...]:
    """Reasons in the data of a fit why its version is weak.

    Args:
        samples: samples of the fit split.
        help_, harm: answers by sample index.
        given_verdicts: verdicts on ground-truth pairs, the preferred answer against the dispreferred one.
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
