"""Nearest fit queries of a query, in memory. The database computes the same with pgvector."""

from __future__ import annotations

import torch
from torch import Tensor

from alignez_core.embeddings import unit_rows
from alignez_core.errors import InvalidInput, TooFewSamples


def nearest(query: Tensor, bank: Tensor, k: int) -> Tensor:
    """Indices of the k bank rows with the largest cosine similarity to the query, largest first.

    The lower index wins a tie. A query that is a row of the bank is its own nearest neighbour.

    Args:
        query: (D,) or (B, D).
        bank: (N, D), rows of any length.
        k: 1 to N.
    Returns: (K,) int64, or (B, K) for a batch.
    Raises: TooFewSamples: k > N. DegenerateEmbeddings: a row is zero or not finite. InvalidInput: k < 1, or the widths
        differ.
    Source: AlignEZ (arXiv 2406.03642), section 2.2, "sample-conditional estimation". The paper does not define the
        distance; cosine is our choice.
    """
    if k < 1:
        raise InvalidInput("neighbors", "must be at least 1")
    if bank.ndim != 2 or query.shape[-1] != bank.shape[1]:
        raise InvalidInput("bank", f"shape {tuple(bank.shape)} does not fit a query of shape {tuple(query.shape)}")
    if k > bank.shape[0]:
        raise TooFewSamples(k, bank.shape[0])
    rows = query if query.ndim == 2 else query.unsqueeze(0)
    similarity = unit_rows(rows, torch.float64) @ unit_rows(bank, torch.float64).T
    order = torch.argsort(similarity, dim=1, descending=True, stable=True)[:, :k]
    return order if query.ndim == 2 else order[0]
