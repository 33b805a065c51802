"""Base models of the deployment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol
from uuid import UUID

from profiles.models import BaseModelRow
from profiles.uow import UnitOfWork


class DescribesModel(Protocol):
    """The stored part of the core's `EngineInfo`, which this package cannot import."""

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
    """Facts of a loaded model, as the database stores them."""

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
        """Facts of a model. name: its name for clients. source: its origin, for people."""
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
    """The row of a loaded model. Every process that loads a model calls this at its start."""
    return uow.repository.catalog.upsert_base_model(asdict(facts))


def list_base_models(uow: UnitOfWork) -> list[BaseModelRow]:
    """All models that were loaded, the latest first."""
    return uow.repository.catalog.base_models()


def base_model_names(uow: UnitOfWork) -> dict[UUID | None, str]:
    """The names of all base models by id; a profile without one has the id None."""
    return {row.id: row.name for row in list_base_models(uow)}
