"""Loads the engine and puts it into service. Only processes that hold a model import it, because it imports torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from alignez_core.engines.load import load_engine, load_query_bank
from api.generation.personalise import Personaliser
from api.generation.prompts import Prompts
from api.generation.run import Served
from api.services import Model, Services
from api.settings import ApiSettings
from profiles.service import ModelFacts, register_base_model
from profiles.uow import PLATFORM, UnitOfWork
from telemetry.logs import configure_logs

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine


def load(settings: ApiSettings, on_lost: Callable[[str], None]) -> tuple[Engine, tuple[str, ...]]:
    """The engine that the settings name, and the query bank of its model.

    Args:
        on_lost: called with one line, from any thread, when the engine's own process ends by itself.
    Raises: ModelNotFound, UnknownArchitecture, OutOfMemory, InvalidInput.
    """
    options = settings.engine_options()
    bank = load_query_bank(options)
    return load_engine(options, on_lost, partial(configure_logs, settings.log_level, settings.log_format)), bank


def assemble(services: Services, engine: Engine, query_bank: tuple[str, ...]) -> Model:
    """The engine with what serves requests on it; its metrics join the process's."""
    settings = services.settings
    services.metrics.watch(engine)
    served = Served(
        engine,
        Prompts(engine),
        services.metrics,
        services.pace,
        services.usage,
        settings.default_max_tokens,
        settings.heartbeat_s,
        services.tracing.tracer,
        settings.max_cache_tokens,
    )
    personaliser = Personaliser(
        engine,
        services.sessions,
        services.metrics,
        settings.plan_cache_size,
        settings.plan_cache_mb << 20,
        services.tracing.tracer,
    )
    return Model(engine, settings.model_name or engine.info.name, served, personaliser, query_bank)


def register(services: Services) -> None:
    """Makes the base model known to the database, so that profiles can be made for it. Raises: DatabaseUnavailable."""
    model = services.require_model()
    facts = ModelFacts.of(model.engine.info, model.name, services.settings.engine_options().source)
    with UnitOfWork.open(services.sessions, PLATFORM) as uow:
        register_base_model(uow, facts)
