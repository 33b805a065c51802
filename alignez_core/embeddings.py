"""Query embeddings for the search of similar queries: one port with two implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from alignez_core.engines.base import Engine
from alignez_core.errors import DegenerateEmbeddings, InvalidInput, ModelNotFound

LM_ENCODER = "lm"


class QueryEncoder(Protocol):
    """Maps queries to unit vectors. A profile's fit and its requests use the same encoder."""

    #: Stored with the version: `"lm"` or a sentence-transformers model id.
    name: str

    def encode(self, queries: Sequence[str]) -> Tensor:
        """(N, E) float32 unit rows on the CPU."""
        ...


def embedding_layer(n_layers: int) -> int:
    """0-based index of the layer whose MLP output embeds a query: the third from last (measured, docs/effect.md)."""
    return max(0, n_layers - 3)


def query_embedding(engine: Engine, queries: Sequence[str]) -> Tensor:
    """Query embeddings made by the language model.

    Returns: (N, D) float32 unit rows: MLP output of `embedding_layer` at the last token of `query + answer cue`.
    Raises: DegenerateEmbeddings: a representation is zero or not finite.
    Source: ours. AlignEZ (arXiv 2406.03642), section 2.2, does not define the embedding.
    """
    prompts = [engine.prompt_format.wrap(query) for query in queries]
    return from_representation(engine.represent(prompts, "last"))


def from_representation(plain: Tensor) -> Tensor:
    """`query_embedding` from the result of an earlier `represent` call.

    Args:
        plain: (N, L, D) representations of wrapped queries without a persona, all layers.
    Returns: (N, D) float32 unit rows.
    """
    return unit_rows(plain[:, embedding_layer(plain.shape[1])])


def unit_rows(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, D) rows scaled to length 1. Raises: DegenerateEmbeddings: a row is zero or not finite."""
    rows = rows.to(dtype)
    norm = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norm).all()) or bool((norm < 1e-12).any()):
        raise DegenerateEmbeddings("a query's embedding is zero or not finite")
    unit: Tensor = rows / norm
    return unit


class LanguageModelEncoder:
    """The default encoder: the base model itself, without further dependencies."""

    name = LM_ENCODER

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def encode(self, queries: Sequence[str]) -> Tensor:
        return query_embedding(self._engine, queries)


class SentenceTransformerEncoder:
    """A sentence-transformers model (extra `encoders`), for base models with poor embeddings."""

    def __init__(self, model: str) -> None:
        """Loads the model. Raises: ModelNotFound: the package or the model is missing."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ModelNotFound(
                f"fit.query_encoder={model!r} needs the package sentence-transformers: pip install 'alignez[encoders]'"
            ) from error
        try:
            self._model = SentenceTransformer(model, device="cpu", trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"fit.query_encoder={model!r} cannot be loaded; set it to 'lm' or to a local directory: {error}"
            ) from error
        self.name = model

    def encode(self, queries: Sequence[str]) -> Tensor:
        vectors = self._model.encode(list(queries), convert_to_numpy=True, normalize_embeddings=True)
        return unit_rows(torch.from_numpy(vectors))


def make_encoder(name: str, engine: Engine) -> QueryEncoder:
    """The encoder with the name of `FitConfig.query_encoder`. Raises: InvalidInput: an empty name. ModelNotFound."""
    if not name:
        raise InvalidInput("query_encoder", "must be 'lm' or a sentence-transformers model")
    return LanguageModelEncoder(engine) if name == LM_ENCODER else SentenceTransformerEncoder(name)
