"""The samples of a fit in their fixed order, each with its persona, its group and its split.

Nothing is judged on what it was fitted or chosen on: the fit split makes the edit, the tune split chooses its form, the
held-out split proves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from alignez_core.spec.persona import FitSpec, Persona

Split = Literal["fit", "tune", "held_out", "unused"]
Origin = Literal["query", "pair", "model", "bank"]

#: With fewer queries of the caller's, all are fitted on, and the bank's are judged on.
SPLIT_FROM = 24


@dataclass(frozen=True)
class Sample:
    """One sample of a fit.

    Args:
        index: its position; queries first, then pairs, then the model's own, then the bank's.
        persona: applies to its query. group: of equal personas, 0-based in order of appearance.
        given: (preferred, dispreferred) answers of a ground-truth pair.
    """

    index: int
    query: str
    persona: Persona
    origin: Origin = "query"
    given: tuple[str, str] | None = None
    group: int = 0
    split: Split = "fit"


def make_samples(spec: FitSpec, own_queries: Sequence[str] = ()) -> list[Sample]:
    """All samples of a spec.

    Given queries of one persona are split when there are `SPLIT_FROM` or more (a third held out, a sixth to tune);
    the bank fills both splits up. Queries of several personas are split within each group (a quarter and a sixth),
    because the bank's do not say to which group they belong. A text that would be in several splits is fitted on.
    """
    return _apart(_split(spec, own_queries))


def _split(spec: FitSpec, own_queries: Sequence[str]) -> list[Sample]:
    texts = [(q.text, q.persona(spec.persona), "query", None) for q in spec.queries]
    texts += [(p.query, spec.persona, "pair", (p.preferred, p.dispreferred)) for p in spec.pairs]  # type: ignore[misc]
    texts += [(q, spec.persona, "model", None) for q in own_queries]
    personas = list(dict.fromkeys(persona for _, persona, _, _ in texts)) or [spec.persona]
    given = [
        Sample(i, text, persona, origin, answers, personas.index(persona))  # type: ignore[arg-type]
        for i, (text, persona, origin, answers) in enumerate(texts)
    ]
    config = spec.config
    if len(personas) > 1:
        return _split_by_group(given, len(personas), config.tune_queries > 0, config.held_out_queries > 0)
    known = {sample.query.casefold() for sample in given}
    bank = [query for query in dict.fromkeys(spec.bank) if query.casefold() not in known]
    spare = [Sample(len(given) + i, q, personas[0], "bank") for i, q in enumerate(bank)]
    if not given:
        return _split_bank(spare, config.answers, config.tune_queries, config.held_out_queries)
    held = tune = 0
    if len(given) >= SPLIT_FROM:
        held = min(config.held_out_queries, len(given) // 3)
        tune = min(config.tune_queries, len(given) // 6)
    given = _spread(given, {"held_out": held, "tune": tune})
    if spare:
        wanted = _scaled([config.tune_queries - tune, config.held_out_queries - held], len(spare))
    else:
        wanted = [0, 0]
        if len(given) < SPLIT_FROM and len(given) >= 4:  # no bank: a few of the caller's own must do
            given = _spread(given, {
                "held_out": min(config.held_out_queries, max(1, len(given) // 4)),
                "tune": min(config.tune_queries, len(given) // 6),
            })  # fmt: skip
    used = [replace(s, split="tune") for s in spare[: wanted[0]]]
    used += [replace(s, split="held_out") for s in spare[wanted[0] : sum(wanted)]]
    return [*given, *used]


def of_split(samples: Sequence[Sample], split: Split) -> list[Sample]:
    """The samples of one split, in order."""
    return [sample for sample in samples if sample.split == split]


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, spread evenly within each group, groups as equal as can be; one of each at least."""
    if len(samples) <= count:
        return list(samples)
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    share = max(1, count // len(groups))
    chosen = [
        rows[i * len(rows) // min(share, len(rows))] for rows in groups.values() for i in range(min(share, len(rows)))
    ]
    return sorted(chosen, key=lambda sample: sample.index)


def fit_query_count(spec: FitSpec) -> int:
    """Number of queries in the fit split of a spec, which bounds the neighbours of a request."""
    own = [f"\x00{i}" for i in range(spec.config.own_queries)]
    return len(of_split(make_samples(spec, own), "fit"))


def _apart(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, with texts of several splits fitted on: nothing may be judged on what it was fitted or chosen on."""
    splits: dict[str, set[Split]] = {}
    for sample in samples:
        splits.setdefault(sample.query.casefold(), set()).add(sample.split)
    return [replace(s, split="fit") if len(splits[s.query.casefold()]) > 1 else s for s in samples]


def _split_bank(bank: Sequence[Sample], answers: int, tune: int, held: int) -> list[Sample]:
    fit, tune, held = _scaled([answers, tune, held], len(bank))
    names: list[Split] = [*["fit"] * max(fit, 1), *["tune"] * tune, *["held_out"] * held]  # type: ignore[list-item]
    return [replace(sample, split=split) for sample, split in zip(bank, names, strict=False)]


def _split_by_group(samples: Sequence[Sample], groups: int, tunes: bool, holds: bool) -> list[Sample]:
    result: list[Sample] = []
    for group in range(groups):
        rows = [sample for sample in samples if sample.group == group]
        held = max(1, len(rows) // 4) if holds and len(rows) >= 4 else 0
        result += _spread(rows, {"held_out": held, "tune": len(rows) // 6 if tunes else 0})
    return sorted(result, key=lambda sample: sample.index)


def _spread(samples: Sequence[Sample], counts: dict[Split, int]) -> list[Sample]:
    """Moves some samples, evenly spread, from the fit split to others."""
    splits: list[Split] = ["fit"] * len(samples)
    for split, count in counts.items():
        free = [i for i, taken in enumerate(splits) if taken == "fit"]
        for k in range(count):
            splits[free[(2 * k + 1) * len(free) // (2 * count)]] = split
    return [replace(sample, split=split) for sample, split in zip(samples, splits, strict=True)]


def _scaled(wanted: Sequence[int], available: int) -> list[int]:
    """The wanted counts, in proportion if there are too few."""
    total = sum(wanted)
    if total <= available:
        return list(wanted)
    return [count * available // total for count in wanted]
