"""Fixtures of the tests of model files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.models.tiny_gguf import write_gguf


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that is in order."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
