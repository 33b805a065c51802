"""Personas, queries and given pairs: the texts that a fit starts from."""

from __future__ import annotations

from dataclasses import dataclass, field

from alignez_core.errors import InvalidInput
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MAX_QUERIES


@dataclass(frozen=True)
class Persona:
    """A wanted behaviour and its opposite, as short phrases that complete "You are a … assistant".

    Args:
        preferred: the behaviour to move to.
        dispreferred: its opposite, to move away from.
        description: free text about the preferred side; it joins that side's prompts only, because the
            opposite of a free text is not known.
    """

    preferred: str = "helpful"
    dispreferred: str = "malicious and useless"
    description: str | None = None


@dataclass(frozen=True)
class FitQuery:
    """A query to fit on; its own phrases, when given, replace the persona's (a personality that depends on context)."""

    text: str
    preferred: str | None = None
    dispreferred: str | None = None

    def persona(self, default: Persona) -> Persona:
        """The persona that answers this query."""
        if self.preferred is None and self.dispreferred is None:
            return default
        return Persona(
            self.preferred or default.preferred,
            self.dispreferred or default.dispreferred,
            default.description if self.preferred is None else None,
        )


@dataclass(frozen=True)
class GivenPair:
    """A ground-truth pair: both answers to one query, so that nothing has to be generated for it."""

    query: str
    preferred: str
    dispreferred: str


@dataclass(frozen=True)
class FitSpec:
    """Everything a fit starts from.

    Args:
        persona: applies to every query without phrases of its own.
        queries, pairs: the caller's. Samples are numbered: queries first, then pairs, then the model's own queries,
            then queries of the bank.
        bank: queries to judge on (and to fit on, where the caller brought none), as many as are needed.
        config: settings.
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
