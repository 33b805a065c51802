"""A tiny random Llama as an engine and as the plain Hugging Face model that its numbers are checked against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from alignez_core.engines.slots.engine import TransformersEngine
from tests.core.engines.tiny_models import byte_tokenizer, tiny_model
from tests.core.methods.plain_model import PlainModel

SHAPE = {"num_hidden_layers": 6, "max_position_embeddings": 512}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More threads only wait for each other on models this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with TransformersEngine.from_model(tiny_model("llama", **SHAPE), byte_tokenizer(), "x", name="x") as shared:
        yield shared


@pytest.fixture(scope="module")
def plain() -> PlainModel:
    """The same weights, without any of our code."""
    return PlainModel(tiny_model("llama", **SHAPE))
