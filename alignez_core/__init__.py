"""Numerics and engines of decode-time personalization.

The package uses no web framework, queue, database or environment variable; callers pass everything as arguments. The
names below are imported at their first use, so that a process without an engine does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "EditPlan": "editing", "apply_edit": "editing",
    "top_direction": "methods.directions", "fit_directions": "methods.directions",
    "select_layers": "methods.layer_selection", "nearest": "neighbors",
    "Engine": "engines.base", "GenerationRequest": "engines.base", "Completion": "engines.base",
    "TransformersEngine": "engines.slots.engine",
    "FitConfig": "spec.config", "FitSpec": "spec.persona", "FitQuery": "spec.persona", "GivenPair": "spec.persona",
    "Persona": "spec.persona", "FittedProfile": "fit", "fit_profile": "fit",
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
