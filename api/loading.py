"""Loads the engine and puts it to service. Imported only by processes that hold a model, because it imports torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from api.generation.personalise import Personaliser
from api.generation.prompts import Prompts
from api.generation.run import Served
from api.services import Model, Services
from api.settings import ApiSettings
from profiles.service import ModelFacts, register_base_model
from profiles.uow import UnitOfWork
from telemetry.logs import configure_logs

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine


def load_engine(settings: ApiSettings, on_lost: Callable[[str], None] | None = None) -> Engine:
    """The engine that the settings name; the shipped persona-nano when they name none.

    Args:
        on_lost: called with one line, from any thread, when the engine's own process ends by itself.
    Raises: ModelNotFound, UnknownArchitecture, OutOfMemory.
    """
    if settings.engine == "vllm":
        return _load_vllm(settings, on_lost)
    from alignez_core.engines.process.engine import ProcessEngine
    from alignez_core.engines.slots.engine import TransformersEngine

    path = _model_path(settings)
    arguments: dict[str, Any] = {
        "device": settings.device,
        "dtype": settings.dtype,
        "revision": settings.model_revision,
        "max_slots": settings.max_running,
        "max_waiting": settings.max_waiting,
        "max_cache_tokens": settings.max_cache_tokens,
        "mlp_path": settings.mlp_path,
        "prompt_format": settings.prompt_format,
        "compile": settings.compile,
        "threads": settings.threads,
        "name": settings.model_name,
    }
    if settings.engine_process:
        logs = partial(configure_logs, settings.log_level, settings.log_format)
        return ProcessEngine.load(path, on_lost=on_lost, prepare=logs, **arguments)
    return TransformersEngine.load(path, **arguments)


def _load_vllm(settings: ApiSettings, on_lost: Callable[[str], None] | None) -> Engine:
    from alignez_core.errors import ModelNotFound

    try:
        from alignez_core.engines.vllm.engine import VLLMEngine
    except ModuleNotFoundError as error:
        raise ModelNotFound(
            f"ALIGNEZ_API_ENGINE=vllm needs vLLM 0.32 beside alignez ({error}); see `make setup-vllm`"
        ) from error
    return VLLMEngine.load(
        _model_path(settings),
        settings.dtype,
        revision=settings.model_revision,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        slots=settings.vllm_slots,
        rank=settings.vllm_rank,
        compile=settings.vllm_compile,
        tensor_parallel_size=settings.vllm_tensor_parallel,
        prompt_format=settings.prompt_format,
        name=settings.model_name,
        on_lost=on_lost,
    )


def load_query_bank(settings: ApiSettings) -> tuple[str, ...]:
    """The bank that the workers use with the model of these settings. Raises: ModelNotFound: it is broken."""
    from alignez_core.query_bank import queries_for

    return queries_for(_model_path(settings))


def _model_path(settings: ApiSettings) -> str:
    """Directory or hub id of the model; a GGUF file is converted here. Raises: ModelNotFound."""
    from alignez_core.models import persona_nano
    from alignez_core.models.resolve import resolve_model

    return resolve_model(settings.model, settings.model_cache) if settings.model else str(persona_nano.MODEL_DIR)


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
    info = model.engine.info
    facts = ModelFacts(
        name=model.name,
        source=services.settings.model or "persona-nano (shipped)",
        fingerprint=info.fingerprint,
        n_layers=info.n_layers,
        hidden_size=info.hidden_size,
        context_length=info.context_length,
        prompt_format=info.prompt_format,
        revision=info.revision,
    )
    with UnitOfWork.open(services.sessions) as uow:
        register_base_model(uow, facts)
