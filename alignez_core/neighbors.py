"""Nearest fit queries of a query, in memory (the database does the same with pgvector)."""

from __future__ import annotations

import torch
from torch import Tensor

from alignez_core.errors import DegenerateEmbeddings, InvalidInput, TooFewSamples


def nearest(query: Tensor, bank: Tensor, k: int) -> Tensor:
    """Indices of the k bank rows most similar to the query by cosine, nearest first; ties to the lower index.

    A query that is itself in the bank is its own nearest neighbour.

    Args:
        query: (D,) or (B, D).
        bank: (N, D); lengths do not matter.
        k: 1 to N.
    Returns: (K,) int64, or (B, K) for a batch.
    Raises: TooFewSamples: k > N, naming both. DegenerateEmbeddings: a zero or not finite row.
    Source: AlignEZ (arXiv 2406.03642), section 2.2, "sample-conditional estimation". The distance is ours to choose
        (the paper leaves it open): cosine.
    """
    if k < 1:
        raise InvalidInput("neighbors", "must be at least 1")
    if bank.ndim != 2 or query.shape[-1] != bank.shape[1]:
        raise InvalidInput("bank", f"shape {tuple(bank.shape)} does not fit a query of shape {tuple(query.shape)}")
    if k > bank.shape[0]:
        raise TooFewSamples(k, bank.shape[0])
    similarity = _unit_rows(query if query.ndim == 2 else query.unsqueeze(0)) @ _unit_rows(bank).T
    order = torch.argsort(similarity, dim=1, descending=True, stable=True)[:, :k]
    return order if query.ndim == 2 else order[0]


def _unit_rows(rows: Tensor) -> Tensor:
    rows = rows.double()
    norm = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norm).all()) or bool((norm == 0).any()):
        raise DegenerateEmbeddings("an embedding is zero or not finite, so it has no cosine")
    unit: Tensor = rows / norm
    return unit
