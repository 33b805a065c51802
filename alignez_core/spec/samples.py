"""Samples of a fit in a fixed order, each with its persona, group and split.

The splits are disjoint: the edit is fitted on the fit split, its form is chosen on the tune split, and the result is
evaluated on the held-out split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from alignez_core.spec.persona import FitSpec, Persona

Split = Literal["fit", "tune", "held_out", "unused"]
Origin = Literal["given", "pair", "invented", "bank"]

#: Fewer given queries than this all go to the fit split, and the bank fills the other splits.
SPLIT_FROM = 24


@dataclass(frozen=True)
class Sample:
    """A query of a fit at its fixed position, with its persona, group and split.

    Args:
        index: position in the fit: queries first, then pairs, then the model's own queries, then the bank's.
        group: 0-based number of the persona, in order of first appearance; samples of one persona share it.
        given: (preferred, dispreferred) answers of a ground-truth pair.
    """

    index: int
    query: str
    persona: Persona
    origin: Origin = "given"
    given: tuple[str, str] | None = None
    group: int = 0
    split: Split = "fit"


def make_samples(spec: FitSpec, own_queries: Sequence[str] = ()) -> list[Sample]:
    """All samples of a spec.

    With one persona, `SPLIT_FROM` or more given queries are split (a third held out, a sixth for tuning), and the bank
    fills both splits up to their configured sizes. With several personas, each group is split on its own (a quarter
    and a sixth) and the bank is not used, because its queries belong to no group. A text that occurs in several splits
    is assigned to the fit split.
    """
    samples = _split(spec, own_queries)
    splits: dict[str, set[Split]] = {}
    for sample in samples:
        splits.setdefault(sample.query.casefold(), set()).add(sample.split)
    return [replace(s, split="fit") if len(splits[s.query.casefold()]) > 1 else s for s in samples]


def _split(spec: FitSpec, own_queries: Sequence[str]) -> list[Sample]:
    texts: list[tuple[str, Persona, Origin, tuple[str, str] | None]] = []
    texts += [(q.text, q.persona(spec.persona), "given", None) for q in spec.queries]
    texts += [(p.query, spec.persona, "pair", (p.preferred, p.dispreferred)) for p in spec.pairs]
    texts += [(q, spec.persona, "invented", None) for q in own_queries]
    personas = list(dict.fromkeys(persona for _, persona, _, _ in texts)) or [spec.persona]
    given = [
        Sample(i, text, persona, origin, answers, personas.index(persona))
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
        if len(given) < SPLIT_FROM and len(given) >= 4:  # no bank: take a few of the given queries
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


def with_text(samples: Sequence[Sample], texts: Mapping[int, str]) -> list[Sample]:
    """The samples whose text, by sample index, is not blank."""
    return [sample for sample in samples if texts.get(sample.index, "").strip()]


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, the same number from each group and evenly spaced within it; at least one per group."""
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
    """Size of the fit split of a spec: the upper bound of `neighbors`."""
    own = [f"\x00{i}" for i in range(spec.config.own_queries)]
    return len(of_split(make_samples(spec, own), "fit"))


def complete_spec(stored: Mapping[str, Any], bank: Sequence[str] = ()) -> FitSpec:
    """`FitSpec.from_dict`; a K that is left open is at most the number of fit queries."""
    spec = FitSpec.from_dict(stored, bank)
    if "neighbors" in stored["fit"]:
        return spec
    neighbors = max(1, min(spec.config.neighbors, fit_query_count(spec)))
    return replace(spec, config=replace(spec.config, neighbors=neighbors))


def _split_bank(bank: Sequence[Sample], answers: int, tune: int, held: int) -> list[Sample]:
    fit, tune, held = _scaled([answers, tune, held], len(bank))
    sizes: dict[Split, int] = {"fit": max(fit, 1), "tune": tune, "held_out": held}
    splits = [split for split, size in sizes.items() for _ in range(size)]
    return [replace(sample, split=split) for sample, split in zip(bank, splits, strict=False)]


def _split_by_group(samples: Sequence[Sample], groups: int, tunes: bool, holds: bool) -> list[Sample]:
    result: list[Sample] = []
    for group in range(groups):
        rows = [sample for sample in samples if sample.group == group]
        held = max(1, len(rows) // 4) if holds and len(rows) >= 4 else 0
        result += _spread(rows, {"held_out": held, "tune": len(rows) // 6 if tunes else 0})
    return sorted(result, key=lambda sample: sample.index)


def _spread(samples: Sequence[Sample], counts: dict[Split, int]) -> list[Sample]:
    """The samples with evenly spaced ones assigned to other splits; `counts` gives the size of each split."""
    splits: list[Split] = ["fit"] * len(samples)
    for split, count in counts.items():
        free = [i for i, taken in enumerate(splits) if taken == "fit"]
        for k in range(count):
            splits[free[(2 * k + 1) * len(free) // (2 * count)]] = split
    return [replace(sample, split=split) for sample, split in zip(samples, splits, strict=True)]


def _scaled(wanted: Sequence[int], available: int) -> list[int]:
    """The wanted counts, reduced in proportion when `available` is smaller than their sum."""
    total = sum(wanted)
    if total <= available:
        return list(wanted)
    return [count * available // total for count in wanted]
