"""Input of a fit: persona, queries, ground-truth pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignez_core.errors import InvalidInput
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MAX_QUERIES


@dataclass(frozen=True)
class Persona:
    """A preferred behaviour and its opposite, as short phrases that complete "You are a … assistant".

    Args:
        preferred: the behaviour to fit.
        dispreferred: its opposite.
        description: free text about the preferred behaviour. Only the preferred side's prompts contain it, because free
            text has no known opposite.
    """

    preferred: str = "helpful"
    dispreferred: str = "malicious and useless"
    description: str | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, str | None] | None) -> Persona:
        """The persona of a stored spec; a phrase that is None takes its default."""
        return cls(**{name: text for name, text in (stored or {}).items() if text is not None})


@dataclass(frozen=True)
class FitQuery:
    """A query to fit on. Phrases of its own replace those of the persona, so that behaviour can depend on context."""

    text: str
    preferred: str | None = None
    dispreferred: str | None = None

    def persona(self, default: Persona) -> Persona:
        """The persona of this query: `default` with the query's own phrases."""
        if self.preferred is None and self.dispreferred is None:
            return default
        return Persona(
            self.preferred or default.preferred,
            self.dispreferred or default.dispreferred,
            default.description if self.preferred is None else None,
        )


@dataclass(frozen=True)
class GivenPair:
    """A ground-truth pair: one query with a preferred and a dispreferred answer."""

    query: str
    preferred: str
    dispreferred: str


@dataclass(frozen=True)
class FitSpec:
    """Complete input of a fit.

    Args:
        persona: default persona of all queries.
        queries, pairs: given by the caller. Sample indices count queries first, then pairs, then queries that the model
            invented, then queries of the bank.
        bank: queries for the tune and held-out splits, and for the fit split if the caller gave none. The fit takes as
            many as it needs.
    """

    persona: Persona = field(default_factory=Persona)
    queries: tuple[FitQuery, ...] = ()
    pairs: tuple[GivenPair, ...] = ()
    bank: tuple[str, ...] = ()
    config: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", tuple(q if isinstance(q, FitQuery) else FitQuery(q) for q in self.queries))
        object.__setattr__(self, "pairs", tuple(self.pairs))
        object.__setattr__(self, "bank", tuple(self.bank))
        given = len(self.queries) + len(self.pairs)
        if given > MAX_QUERIES:
            raise InvalidInput("queries", f"{given} given; at most {MAX_QUERIES} are possible")
        if not given and not self.bank:
            raise InvalidInput("queries", "none given and no bank to take them from")

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], bank: Sequence[str] = ()) -> FitSpec:
        """The spec of a version from its JSON form: persona, queries, pairs, fit.

        Raises: InvalidInput: a setting of `fit` is unknown or malformed, or there are no queries.
        """
        return cls(
            Persona.from_dict(stored["persona"]),
            tuple(FitQuery(**query) for query in stored["queries"]),
            tuple(GivenPair(**pair) for pair in stored["pairs"]),
            tuple(bank),
            FitConfig.from_dict(stored["fit"]),
        )
