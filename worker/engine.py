"""The worker's engine, loaded in the child process only. Importing this module loads no torch; `load_engine` does."""

from __future__ import annotations

from collections.abc import Callable
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


def load_engine(settings: WorkerSettings, on_lost: Callable[[str], None] | None = None) -> LoadedEngine:
    """The engine that the settings name; the shipped persona-nano when they name none.

    Args:
        on_lost: called with one line, from any thread, when a process of the engine's own ends by itself.
    Raises: ModelNotFound, UnknownArchitecture, OutOfMemory, InvalidInput.
    """
    from alignez_core.query_bank import queries_for

    engine, source, model = _make(settings, on_lost)
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


def _make(settings: WorkerSettings, on_lost: Callable[[str], None] | None) -> tuple[Engine, str, str | None]:
    """(engine, source, model directory or hub id)."""
    if settings.model is not None and settings.model.startswith(_FAKE):
        return _fake(settings.model), settings.model, None
    from alignez_core.models import persona_nano
    from alignez_core.models.resolve import resolve_model

    path = resolve_model(settings.model, settings.model_cache) if settings.model else str(persona_nano.MODEL_DIR)
    on_vllm = settings.engine == "vllm"
    engine = _load_vllm(settings, path, on_lost) if on_vllm else _load_transformers(settings, path)
    return engine, path if settings.model else "persona-nano (shipped)", path


def _load_transformers(settings: WorkerSettings, path: str) -> Engine:
    from alignez_core.engines.slots.engine import TransformersEngine

    return TransformersEngine.load(
        path,
        device=settings.device,
        dtype=settings.dtype,
        revision=settings.model_revision,
        max_slots=settings.max_batch,
        mlp_path=settings.mlp_path,
        prompt_format=settings.prompt_format,
        threads=settings.threads,
    )


def _load_vllm(settings: WorkerSettings, path: str, on_lost: Callable[[str], None] | None) -> Engine:
    from alignez_core.errors import ModelNotFound

    try:
        from alignez_core.engines.vllm.engine import VLLMEngine
    except ModuleNotFoundError as error:
        raise ModelNotFound(
            f"ALIGNEZ_WORKER_ENGINE=vllm needs vLLM 0.32 beside alignez ({error}); see `make setup-vllm`"
        ) from error
    _allow_children()
    return VLLMEngine.load(
        path,
        settings.dtype,
        revision=settings.model_revision,
        max_running=settings.max_batch,
        slots=settings.vllm_slots,
        rank=settings.vllm_rank,
        compile=settings.vllm_compile,
        tensor_parallel_size=settings.vllm_tensor_parallel,
        prompt_format=settings.prompt_format,
        on_lost=on_lost,
    )


def _allow_children() -> None:
    """Lets this process start vLLM's engine core.

    Celery's pool makes its children daemons and puts its own process object (billiard 4.3's) where the standard library
    keeps the current one. So `multiprocessing` refuses to start anything, because daemons must not have children, and
    cannot pickle billiard's key for what it spawns. The rule is there because children of a killed daemon outlive it;
    an engine core does not (`alignez_core.engines.vllm.core_process`). The other ways cost more: a pool of threads
    cannot kill a fit that hangs, and vLLM's engine without a process of its own has no asynchronous front.
    """
    from multiprocessing import process

    current = process.current_process()
    if current.daemon:
        config = current._config  # type: ignore[attr-defined]
        config["daemon"] = False
        config["authkey"] = process.AuthenticationString(current.authkey)  # type: ignore[attr-defined]


def _fake(url: str) -> Engine:
    from alignez_core.engines.fake.engine import FakeEngine

    options = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
    return FakeEngine(
        name=options.get("name", "fake"),
        n_layers=int(options.get("n_layers", 4)),
        hidden_size=int(options.get("hidden_size", 16)),
        step_s=float(options.get("step_s", 0.0)),
    )
