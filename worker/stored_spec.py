"""Conversions between a version's stored spec and queries and the core's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import FitQuery, FitSpec, GivenPair, Persona
from alignez_core.spec.samples import Origin, Sample, fit_query_count, make_samples
from profiles.fitting.content import QueryRecord
from profiles.models import FitQueryRow, QuerySource, QuerySplit
from profiles.spec import DEFAULT_NEIGHBORS

_SOURCES: dict[Origin, QuerySource] = {
    "query": QuerySource.GIVEN,
    "pair": QuerySource.PAIR,
    "model": QuerySource.INVENTED,
    "bank": QuerySource.BANK,
}
_ORIGINS = {source: origin for origin, source in _SOURCES.items()}


def fit_spec(spec: Mapping[str, Any], bank: Sequence[str]) -> FitSpec:
    """The spec for the core. The default of K is ten, or the number of fit queries if that is lower.

    Raises: InvalidInput: a setting is unknown or malformed.
    """
    made = FitSpec(
        persona_of(spec),
        tuple(FitQuery(q["text"], q["preferred"], q["dispreferred"]) for q in spec["queries"]),
        tuple(GivenPair(p["query"], p["preferred"], p["dispreferred"]) for p in spec["pairs"]),
        tuple(bank),
        FitConfig.from_dict(spec["fit"]),
    )
    if "neighbors" in spec["fit"]:
        return made
    neighbors = max(1, min(DEFAULT_NEIGHBORS, fit_query_count(made)))
    config = FitConfig.from_dict({**spec["fit"], "neighbors": neighbors})
    return FitSpec(made.persona, made.queries, made.pairs, made.bank, config)


def persona_of(spec: Mapping[str, Any]) -> Persona:
    """The persona of a stored spec."""
    return Persona(**{name: value for name, value in (spec["persona"] or {}).items() if value is not None})


def records_of(spec: FitSpec, own_queries: Sequence[str]) -> list[QueryRecord]:
    """All queries of a fit, with their splits and groups.

    Args:
        own_queries: all queries that the model invented, because the positions of the bank's queries follow theirs.
    """
    records = []
    for sample in make_samples(spec, own_queries):
        given = spec.queries[sample.index] if sample.origin == "query" else FitQuery(sample.query)
        records.append(
            QueryRecord(
                sample.index, sample.query, _SOURCES[sample.origin], given.preferred, given.dispreferred,
                QuerySplit(sample.split), sample.group,
            )
        )  # fmt: skip
    return records


def samples_of(spec: Mapping[str, Any], queries: Sequence[FitQueryRow]) -> list[Sample]:
    """The samples of a stored version."""
    persona = persona_of(spec)
    first_pair = len(spec["queries"])
    samples = []
    for row in queries:
        given = None
        if row.source is QuerySource.PAIR:
            pair = spec["pairs"][row.position - first_pair]
            given = (pair["preferred"], pair["dispreferred"])
        own = FitQuery(row.text, row.preferred, row.dispreferred).persona(persona)
        samples.append(
            Sample(row.position, row.text, own, _ORIGINS[row.source], given, row.persona_group, row.split.value)
        )
    return samples
