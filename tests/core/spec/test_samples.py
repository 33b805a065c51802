"""Samples and splits: every sample in one split, nothing judged that was fitted on, groups kept."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_core.errors import InvalidInput
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MAX_QUERIES
from alignez_core.spec.persona import FitQuery, FitSpec, GivenPair, Persona
from alignez_core.spec.samples import SPLIT_FROM, Sample, fit_query_count, make_samples, of_split, spread

PERSONA = Persona("cheerful", "gloomy")


@st.composite
def specs(draw: st.DrawFn) -> FitSpec:
    """Specs of every make: own phrases or none, repeated texts, pairs, banks large and small."""
    phrases = draw(st.sampled_from([(None,), (None, "formal"), ("formal", "pirate", "terse")]))
    queries = [
        FitQuery(f"Query {draw(st.integers(0, 60))}?", draw(st.sampled_from(phrases)))
        for _ in range(draw(st.integers(0, 40)))
    ]
    pairs = [GivenPair(f"query {draw(st.integers(40, 80))}?", "Yes", "No") for _ in range(draw(st.integers(0, 30)))]
    bank = tuple(f"Query {i}?" for i in range(draw(st.integers(0 if queries or pairs else 1, 120))))
    config = FitConfig(
        answers=draw(st.integers(1, 40)),
        tune_queries=draw(st.integers(0, 20)),
        held_out_queries=draw(st.integers(0, 40)),
    )
    return FitSpec(PERSONA, tuple(queries), tuple(pairs), bank, config)


@settings(max_examples=150, deadline=None)
@given(spec=specs(), own=st.integers(0, 5))
def test_every_sample_is_in_one_split_and_nothing_is_judged_on_what_was_fitted(spec: FitSpec, own: int) -> None:
    invented = [f"Invented {i}?" for i in range(own if spec.queries or spec.pairs else 0)]
    samples = make_samples(spec, invented)
    assert [s.index for s in samples] == list(range(len(samples)))
    assert make_samples(spec, invented) == samples
    splits = [{s.query.casefold() for s in of_split(samples, name)} for name in ("fit", "tune", "held_out")]
    assert splits[0]
    assert not splits[0] & splits[1]
    assert not splits[0] & splits[2]
    assert not splits[1] & splits[2]

    given_count = len(spec.queries) + len(spec.pairs) + len(invented)
    origins = [s.origin for s in samples[:given_count]]
    assert origins == ["given"] * len(spec.queries) + ["pair"] * len(spec.pairs) + ["invented"] * len(invented)
    assert all(s.origin == "bank" for s in samples[given_count:])
    assert not {s.query.casefold() for s in samples[:given_count]} & {s.query.casefold() for s in samples[given_count:]}
    # Groups number the personas in order of appearance.
    personas = list(dict.fromkeys(s.persona for s in samples))
    assert all(personas[s.group] == s.persona for s in samples)
    if len(personas) == 1:
        assert len(of_split(samples, "held_out")) <= spec.config.held_out_queries
        assert len(of_split(samples, "tune")) <= max(spec.config.tune_queries, 1)
    else:
        assert {s.group for s in of_split(samples, "fit")} == set(range(len(personas))) or len(set(splits[0])) < len(
            [*spec.queries, *spec.pairs]
        )


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4), count=st.integers(1, 50))
def test_spread_takes_no_more_than_there_are_and_keeps_the_groups(sizes: list[int], count: int) -> None:
    rows = [Sample(0, "x", PERSONA, group=g) for g, size in enumerate(sizes) for _ in range(size)]
    rows = [Sample(i, f"q{i}", PERSONA, group=s.group) for i, s in enumerate(rows)]
    chosen = spread(rows, count)
    groups = Counter(s.group for s in rows)
    assert len({s.index for s in chosen}) == len(chosen)
    assert set(chosen) <= set(rows)
    assert len(chosen) <= max(count, len(groups))
    assert {s.group for s in chosen} == set(groups)
    taken = Counter(s.group for s in chosen)
    if len(rows) > count:
        share = max(1, count // len(groups))
        assert all(taken[g] == min(size, share) for g, size in groups.items())
    else:
        assert chosen == rows


def test_with_no_queries_the_bank_is_fitted_chosen_and_judged_on() -> None:
    bank = tuple(f"Query {i}?" for i in range(100))
    samples = make_samples(FitSpec(PERSONA, bank=bank))
    assert {name: len(of_split(samples, name)) for name in ("fit", "tune", "held_out")} == {
        "fit": 24, "tune": 8, "held_out": 32,
    }  # fmt: skip
    few = make_samples(FitSpec(PERSONA, bank=bank[:19]))
    assert {name: len(of_split(few, name)) for name in ("fit", "tune", "held_out")} == {
        "fit": 7, "tune": 2, "held_out": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "bank", "expected"),
    [
        (SPLIT_FROM, 0, (12, 4, 8)),
        (SPLIT_FROM, 100, (12, 8, 32)),
        (SPLIT_FROM - 1, 100, (23, 8, 32)),
        (8, 0, (5, 1, 2)),
        (3, 0, (3, 0, 0)),
    ],
)
def test_given_queries_are_split_and_the_bank_fills_up(count: int, bank: int, expected: tuple[int, ...]) -> None:
    queries = tuple(FitQuery(f"Own {i}?") for i in range(count))
    spec = FitSpec(PERSONA, queries, bank=tuple(f"Bank {i}?" for i in range(bank)))
    samples = make_samples(spec)
    assert tuple(len(of_split(samples, name)) for name in ("fit", "tune", "held_out")) == expected
    assert fit_query_count(spec) == expected[0]


def test_groups_are_split_within_themselves_and_no_bank_is_judged_on() -> None:
    queries = [FitQuery(f"Home {i}?") for i in range(12)] + [
        FitQuery(f"Work {i}?", "formal", "slangy") for i in range(8)
    ]
    samples = make_samples(FitSpec(PERSONA, tuple(queries), bank=("Bank?",)))
    assert len(samples) == 20
    for group, (fit, tune, held) in enumerate(((7, 2, 3), (5, 1, 2))):
        rows = [s for s in samples if s.group == group]
        assert [sum(s.split == name for s in rows) for name in ("fit", "tune", "held_out")] == [fit, tune, held]


def test_a_text_that_is_given_twice_is_in_one_split() -> None:
    queries = tuple(FitQuery(f"Own {i % 30}?") for i in range(60))
    samples = make_samples(FitSpec(PERSONA, queries))
    by_text: dict[str, set[str]] = {}
    for sample in samples:
        by_text.setdefault(sample.query, set()).add(sample.split)
    assert all(len(splits) == 1 for splits in by_text.values())


def test_own_phrases_replace_the_persona_s() -> None:
    persona = Persona("cheerful", "gloomy", "You love the sea.")
    assert FitQuery("x").persona(persona) == persona
    assert FitQuery("x", "formal", "slangy").persona(persona) == Persona("formal", "slangy")
    assert FitQuery("x", dispreferred="sad").persona(persona) == Persona("cheerful", "sad", "You love the sea.")


def test_a_spec_needs_something_to_fit_on_and_not_too_much() -> None:
    with pytest.raises(InvalidInput, match="queries: none given"):
        FitSpec(PERSONA)
    with pytest.raises(InvalidInput, match=f"queries: {MAX_QUERIES + 1} given"):
        FitSpec(PERSONA, tuple(FitQuery("x") for _ in range(MAX_QUERIES)), (GivenPair("a", "b", "c"),))
    assert FitSpec(PERSONA, ("as text",)).queries == (FitQuery("as text"),)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["config", "persona", "limits", "samples"])
def test_the_spec_does_not_load_torch(module: str) -> None:
    code = f"import alignez_core.spec.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
