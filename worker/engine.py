"""The worker's engine, loaded in the child process only. Importing this module loads no torch; `load_engine` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from profiles.service import ModelFacts
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine

_FAKE = "fake:"


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """An engine, what the database has to know about it, and the queries of its directory's bank."""

    engine: Engine
    facts: ModelFacts
    query_bank: tuple[str, ...]


def load_engine(settings: WorkerSettings) -> LoadedEngine:
    """The engine that the settings name; the shipped persona-nano when they name none.

    Raises: ModelNotFound, UnknownArchitecture, OutOfMemory, InvalidInput.
    """
    from alignez_core.query_bank import queries_for

    engine, source, model = _make(settings)
    info = engine.info
    facts = ModelFacts(
        name=settings.model_name or info.name,
        source=source,
        fingerprint=info.fingerprint,
        n_layers=info.n_layers,
        hidden_size=info.hidden_size,
        context_length=info.context_length,
        prompt_format=info.prompt_format,
        revision=info.revision,
    )
    return LoadedEngine(engine, facts, queries_for(model))


def _make(settings: WorkerSettings) -> tuple[Engine, str, str | None]:
    """(engine, source, model directory or hub id)."""
    if settings.model is not None and settings.model.startswith(_FAKE):
        return _fake(settings.model), settings.model, None
    from alignez_core import nano
    from alignez_core.engines.transformers_engine import TransformersEngine

    path = settings.model or str(nano.MODEL_DIR)
    engine = TransformersEngine.load(
        path,
        device=settings.device,
        dtype=settings.dtype,
        revision=settings.model_revision,
        max_slots=settings.max_batch,
        mlp_path=settings.mlp_path,
        prompt_format=settings.prompt_format,
        threads=settings.threads,
    )
    return engine, path if settings.model else "persona-nano (shipped)", path


def _fake(url: str) -> Engine:
    from alignez_core.engines.fake_engine import FakeEngine

    options = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
    return FakeEngine(
        name=options.get("name", "fake"),
        n_layers=int(options.get("n_layers", 4)),
        hidden_size=int(options.get("hidden_size", 16)),
        step_s=float(options.get("step_s", 0.0)),
    )
