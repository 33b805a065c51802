"""Loads the engine that `EngineOptions` describe. Importing this module imports neither torch nor an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from alignez_core.errors import InvalidInput, ModelNotFound

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine

_FAKE = "fake:"


@dataclass(frozen=True)
class EngineOptions:
    """The model of a process and how an engine runs it; the engines' `load` methods explain each option.

    Args:
        model: name of the catalogue, GGUF file, model directory or hub id; None is the shipped persona-nano.
            `fake:` (with `?step_s=0.01&n_layers=4`) is the model-free engine, for tests of everything around an engine.
        model_cache: directory of models converted from GGUF files; it is searched for names of the catalogue.
        model_name: the engine's `info.name`; None takes the model's.
        model_revision: commit or tag of a hub id.
        mlp_path, device, threads, compile, max_cache_tokens, own_process: of "transformers" only.
        own_process: run the model in a child process, so that it and its caller do not share an interpreter lock.
        vllm_slots, vllm_rank, vllm_tensor_parallel, vllm_compile: of "vllm" only.
    """

    model: str | None
    model_cache: Path
    model_name: str | None = None
    model_revision: str | None = None
    engine: Literal["transformers", "vllm"] = "transformers"
    prompt_format: Literal["auto", "plain", "chat"] = "auto"
    mlp_path: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    compile: bool = False
    max_running: int = 64
    max_waiting: int = 1024
    max_cache_tokens: int | None = None
    own_process: bool = False
    vllm_slots: int | None = None
    vllm_rank: int = 4
    vllm_tensor_parallel: int = 1
    vllm_compile: bool = True

    @property
    def source(self) -> str:
        """Origin of the model, for people."""
        return self.model or "persona-nano (shipped)"


def load_engine(
    options: EngineOptions,
    on_lost: Callable[[str], None] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Engine:
    """The engine, ready to serve.

    Args:
        on_lost: called with one line, from any thread, when a process of the engine ends by itself.
        prepare: called in the engine's own process before it loads, to set up logs for example; picklable.
    Raises: ModelNotFound, UnknownArchitecture, OutOfMemory; InvalidInput: an option out of range.
    """
    if _is_fake(options):
        return _load_fake(options)
    if options.engine == "vllm":
        return _load_vllm(options, on_lost)
    from alignez_core.engines.process.engine import ProcessEngine
    from alignez_core.engines.slots.engine import TransformersEngine

    path = _model_path(options)
    arguments: dict[str, Any] = {
        "device": options.device,
        "dtype": options.dtype,
        "revision": options.model_revision,
        "max_slots": options.max_running,
        "max_waiting": options.max_waiting,
        "max_cache_tokens": options.max_cache_tokens,
        "mlp_path": options.mlp_path,
        "prompt_format": options.prompt_format,
        "compile": options.compile,
        "threads": options.threads,
        "name": options.model_name,
    }
    if options.own_process:
        return ProcessEngine.load(path, on_lost=on_lost, prepare=prepare, **arguments)
    return TransformersEngine.load(path, **arguments)


def load_query_bank(options: EngineOptions) -> tuple[str, ...]:
    """The queries that fits draw from with this model. Raises: ModelNotFound: the model's own bank is broken."""
    from alignez_core.query_bank import queries_for

    return queries_for(None if _is_fake(options) else _model_path(options))


def _is_fake(options: EngineOptions) -> bool:
    return options.model is not None and options.model.startswith(_FAKE)


def _model_path(options: EngineOptions) -> str:
    """Directory or hub id; a GGUF file is converted here. Raises: ModelNotFound."""
    from alignez_core.models import persona_nano
    from alignez_core.models.resolve import resolve_model

    return resolve_model(options.model, options.model_cache) if options.model else str(persona_nano.MODEL_DIR)


def _load_vllm(options: EngineOptions, on_lost: Callable[[str], None] | None) -> Engine:
    try:
        from alignez_core.engines.vllm.engine import VLLMEngine
    except ModuleNotFoundError as error:
        raise ModelNotFound(
            f"the vllm engine needs vLLM 0.32 beside alignez ({error}); see `make setup-vllm`"
        ) from error
    return VLLMEngine.load(
        _model_path(options),
        options.dtype,
        revision=options.model_revision,
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        slots=options.vllm_slots,
        rank=options.vllm_rank,
        compile=options.vllm_compile,
        tensor_parallel_size=options.vllm_tensor_parallel,
        prompt_format=options.prompt_format,
        name=options.model_name,
        on_lost=on_lost,
    )


def _load_fake(options: EngineOptions) -> Engine:
    from alignez_core.engines.fake.engine import FakeEngine

    given = {name: values[-1] for name, values in parse_qs(urlsplit(options.model or "").query).items()}
    name = options.model_name or given.get("name", "fake")
    try:
        return FakeEngine(
            name=name,
            n_layers=int(given.get("n_layers", 4)),
            hidden_size=int(given.get("hidden_size", 16)),
            step_s=float(given.get("step_s", 0.0)),
        )
    except ValueError as error:
        raise InvalidInput("model", f"{options.model!r} holds a value that is not a number") from error
