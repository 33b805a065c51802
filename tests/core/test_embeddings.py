"""Query embeddings: the last layer but two, unit rows, and a second encoder behind the same port."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from alignez_core import embeddings
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.errors import DegenerateEmbeddings, InvalidInput, ModelNotFound


def test_the_embedding_is_the_last_layer_but_two_of_the_wrapped_query() -> None:
    engine = FakeEngine(n_layers=5)
    rows = embeddings.query_embedding(engine, ["One?", "Two?"])
    site = engine.represent([engine.prompt_format.wrap("One?")])[0, 2]
    assert torch.allclose(rows[0], site / site.norm(), atol=1e-6)
    assert torch.allclose(rows.norm(dim=1), torch.ones(2), atol=1e-6)


@pytest.mark.parametrize(("n_layers", "layer"), [(1, 0), (2, 0), (3, 0), (4, 1), (30, 27)])
def test_a_model_of_few_layers_has_a_site_too(n_layers: int, layer: int) -> None:
    assert embeddings.embedding_layer(n_layers) == layer


def test_a_zero_embedding_is_an_error() -> None:
    with pytest.raises(DegenerateEmbeddings):
        embeddings.unit_rows(torch.zeros(1, 3))


def test_the_language_model_is_the_default_encoder() -> None:
    assert embeddings.make_encoder("lm", FakeEngine()).name == "lm"
    with pytest.raises(InvalidInput):
        embeddings.make_encoder("", FakeEngine())


def test_a_sentence_transformers_model_is_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class SentenceTransformer:
        def __init__(self, model: str, device: str, trust_remote_code: bool) -> None:
            if model != "mini":
                raise OSError("no such model")
            assert not trust_remote_code

        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            return np.array([[3.0, 4.0]] * len(texts), dtype=np.float32)

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    encoder = embeddings.make_encoder("mini", FakeEngine())
    assert encoder.name == "mini"
    assert torch.allclose(encoder.encode(["a", "b"]), torch.tensor([[0.6, 0.8], [0.6, 0.8]]))
    with pytest.raises(ModelNotFound, match="local directory"):
        embeddings.make_encoder("other", FakeEngine())


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelNotFound, match=r"pip install 'alignez\[encoders\]'"):
        embeddings.make_encoder("mini", FakeEngine())
