"""Base models of the deployment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

from profiles.models import BaseModelRow
from profiles.uow import UnitOfWork


class DescribesModel(Protocol):
    """The part of the core's `EngineInfo` that is stored; this package cannot import it."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def prompt_format(self) -> str: ...
    @property
    def revision(self) -> str | None: ...


@dataclass(frozen=True)
class ModelFacts:
    """A loaded model as its row in the database."""

    name: str
    source: str
    fingerprint: str
    n_layers: int
    hidden_size: int
    context_length: int
    prompt_format: str
    revision: str | None = None

    @classmethod
    def of(cls, info: DescribesModel, name: str, source: str) -> ModelFacts:
        """Facts of a model under the name that clients know it by. source: where it came from, for people."""
        return cls(
            name=name,
            source=source,
            fingerprint=info.fingerprint,
            n_layers=info.n_layers,
            hidden_size=info.hidden_size,
            context_length=info.context_length,
            prompt_format=info.prompt_format,
            revision=info.revision,
        )


def register_base_model(uow: UnitOfWork, facts: ModelFacts) -> BaseModelRow:
    """The row of a loaded model; every process that loads one calls this at its start."""
    return uow.repository.catalog.upsert_base_model(asdict(facts))


def list_base_models(uow: UnitOfWork) -> list[BaseModelRow]:
    """All models ever loaded, the last one first."""
    return uow.repository.catalog.base_models()
