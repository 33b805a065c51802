"""The worker's engine, loaded in the child process only. Importing this module loads no torch; `load_engine` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_core.engines import load
from profiles.service import ModelFacts
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """An engine, its facts as the database keeps them, and the query bank of its model."""

    engine: Engine
    facts: ModelFacts
    query_bank: tuple[str, ...]


def load_engine(settings: WorkerSettings, on_lost: Callable[[str], None] | None = None) -> LoadedEngine:
    """The engine that the settings name; the shipped persona-nano when they name none.

    Args:
        on_lost: called with one line, from any thread, when a process of the engine ends by itself.
    Raises: ModelNotFound, UnknownArchitecture, OutOfMemory, InvalidInput.
    """
    options = settings.engine_options()
    if options.engine == "vllm":
        _allow_children()
    engine = load.load_engine(options, on_lost)
    facts = ModelFacts.of(engine.info, settings.model_name or engine.info.name, options.source)
    return LoadedEngine(engine, facts, load.load_query_bank(options))


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
