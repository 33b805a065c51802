"""The `Engine` port and its implementations."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Engine": "base", "GenerationRequest": "base", "Completion": "base", "ScoreRequest": "base",
    "TransformersEngine": "slots.engine",
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
