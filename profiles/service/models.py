"""Base models of the deployment."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from profiles.models import BaseModelRow
from profiles.uow import UnitOfWork


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a loaded model (the core's `EngineInfo`, which this package cannot name)."""

    name: str
    source: str
    fingerprint: str
    n_layers: int
    hidden_size: int
    context_length: int
    prompt_format: str
    revision: str | None = None


def register_base_model(uow: UnitOfWork, facts: ModelFacts) -> BaseModelRow:
    """The row of a loaded model; every process that loads one calls this at its start."""
    return uow.repository.catalog.upsert_base_model(asdict(facts))


def list_base_models(uow: UnitOfWork) -> list[BaseModelRow]:
    """All models ever loaded, the last one first."""
    return uow.repository.catalog.base_models()
