"""Fixtures of the core's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.models import persona_nano


@pytest.fixture(scope="module")
def nano_engine() -> Iterator[TransformersEngine]:
    """persona-nano in float32, on one thread."""
    torch.set_num_threads(1)
    with TransformersEngine.load(persona_nano.MODEL_DIR, dtype="float32") as engine:
        yield engine
