"""Fixtures of the engine tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignez_core.engines.slots.engine import TransformersEngine
from tests.core.engines.tiny_models import tiny_engine


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More threads only wait for each other on models this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository_root() -> Path:
    return Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    """A tiny Llama, shared by the tests of a module."""
    with tiny_engine() as shared:
        yield shared
