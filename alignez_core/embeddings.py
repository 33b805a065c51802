"""Query embeddings, by which similar queries are found: a port with two implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from alignez_core.engines.base import Engine
from alignez_core.errors import DegenerateEmbeddings, InvalidInput, ModelNotFound

LM_ENCODER = "lm"


class QueryEncoder(Protocol):
    """Maps queries to unit vectors; the same encoder serves a profile's fit and its requests."""

    #: Stored with the version: `"lm"` or a sentence-transformers model id.
    name: str

    def encode(self, queries: Sequence[str]) -> Tensor:
        """(N, E) float32 unit rows on the CPU."""
        ...


def embedding_layer(n_layers: int) -> int:
    """The layer whose MLP output embeds a query: the last but two, 0-based; chosen by measurement (docs/effect.md)."""
    return max(0, n_layers - 3)


def query_embedding(engine: Engine, queries: Sequence[str]) -> Tensor:
    """The language model's own query embedding.

    Returns: (N, D) float32 unit rows: MLP output of `embedding_layer` at the last token of `query + answer cue`.
    Raises: DegenerateEmbeddings: a zero or not finite representation.
    Source: ours; AlignEZ (arXiv 2406.03642), section 2.2 leaves the embedding open.
    """
    prompts = [engine.prompt_format.wrap(query) for query in queries]
    return from_representation(engine.represent(prompts, "last"))


def from_representation(plain: Tensor) -> Tensor:
    """The same embedding from an existing `represent` result.

    Args:
        plain: (N, L, D) representations of bare, wrapped queries, all layers.
    Returns: (N, D) float32 unit rows.
    """
    return unit_rows(plain[:, embedding_layer(plain.shape[1])])


def unit_rows(rows: Tensor) -> Tensor:
    """(N, D) float32 rows of length 1. Raises: DegenerateEmbeddings: a zero or not finite row."""
    rows = rows.float()
    norm = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norm).all()) or bool((norm < 1e-12).any()):
        raise DegenerateEmbeddings("a query's embedding is zero or not finite")
    unit: Tensor = rows / norm
    return unit


class LanguageModelEncoder:
    """The default: the base model itself, so nothing else has to be installed."""

    name = LM_ENCODER

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def encode(self, queries: Sequence[str]) -> Tensor:
        return query_embedding(self._engine, queries)


class SentenceTransformerEncoder:
    """A sentence-transformers model (extra `encoders`), for base models whose own embedding is poor."""

    def __init__(self, model: str) -> None:
        """Loads the model. Raises: ModelNotFound: package or model missing, saying what to install or set."""
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
    """The encoder that a fit config names: `"lm"`, or a sentence-transformers id or directory."""
    if not name:
        raise InvalidInput("query_encoder", "must be 'lm' or a sentence-transformers model")
    return LanguageModelEncoder(engine) if name == LM_ENCODER else SentenceTransformerEncoder(name)
