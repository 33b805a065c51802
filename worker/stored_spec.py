"""Converts a version's stored spec and queries to the core's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import FitQuery, FitSpec, GivenPair, Persona
from alignez_core.spec.samples import Origin, Sample, fit_query_count, make_samples
from profiles.fitting.content import QueryRecord
from profiles.models import QuerySource, QuerySplit
from profiles.spec import DEFAULT_NEIGHBORS

_SOURCES: dict[Origin, QuerySource] = {
    "query": QuerySource.GIVEN,
    "pair": QuerySource.PAIR,
    "model": QuerySource.INVENTED,
    "bank": QuerySource.BANK,
}
_ORIGINS = {source: origin for origin, source in _SOURCES.items()}


def fit_spec(spec: Mapping[str, Any], bank: Sequence[str]) -> FitSpec:
    """The spec as the core takes it. A K that the caller left open is ten, or all queries that are fitted on.

    Raises: InvalidInput: an unknown or malformed setting.
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
        own_queries: that the model invented; all of them, or positions of the bank's queries would move.
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


def samples_of(spec: Mapping[str, Any], records: Sequence[QueryRecord]) -> list[Sample]:
    """The samples that a stored version was made of."""
    persona = persona_of(spec)
    first_pair = len(spec["queries"])
    samples = []
    for record in records:
        given = None
        if record.source is QuerySource.PAIR:
            pair = spec["pairs"][record.position - first_pair]
            given = (pair["preferred"], pair["dispreferred"])
        samples.append(
            Sample(
                record.position,
                record.text,
                FitQuery(record.text, record.preferred, record.dispreferred).persona(persona),
                _ORIGINS[record.source],
                given,
                record.group,
                record.split.value,
            )
        )
    return samples
