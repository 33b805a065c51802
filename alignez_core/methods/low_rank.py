"""The closed-form fit of one layer's edit: ridge regression truncated to a low rank, with a row for the mean.

Shapes: T rows, D hidden size, r rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alignez_core.errors import DegenerateEmbeddings
from alignez_core.spec.config import DEFAULT_RIDGE

#: Of the subspace iteration; real states settle within thirty.
_MOST_ITERATIONS = 100


def low_rank(x: Tensor, gap: Tensor, rank: int, ridge: float = DEFAULT_RIDGE) -> tuple[Tensor, Tensor, Tensor]:
    """(U, V, c) of the edit x + (x·Uᵀ + c)·V that comes closest to x + gap.

    Ridge regression on centred rows, truncated to `rank` by the singular vectors of its fitted values (reduced-rank
    regression), and a last row for the mean. float64 inside.

    Args:
        x, gap: (T, D). rank: r, 0 for the mean alone. ridge: penalty in units of the normal matrix's mean diagonal.
    Returns: U (r + 1, D), V (r + 1, D), c (r + 1,), float32.
    Raises: DegenerateEmbeddings: values that are not finite.
    """
    x, gap = x.double(), gap.double()
    mean, bias = x.mean(0), gap.mean(0)
    centred, target = x - mean, gap - bias
    width = x.shape[1]
    if not bool(torch.isfinite(bias).all() and torch.isfinite(mean).all()):
        raise DegenerateEmbeddings("the states to fit on hold values that are not finite")
    u, v = x.new_zeros(0, width), x.new_zeros(0, width)
    rank = min(rank, width, max(len(x) - 1, 0))
    if rank and bool(centred.any()):
        # The regression's weights are A = N⁻¹·M. They are never formed: the fitted values' Gram matrix AᵀCA is applied.
        gram, cross = centred.T @ centred, centred.T @ target
        normal = gram.clone()
        normal.diagonal().add_(ridge * gram.diagonal().mean())
        factor = torch.linalg.cholesky(normal)

        def fitted_gram(q: Tensor) -> Tensor:
            inner = gram @ torch.cholesky_solve(cross @ q, factor)
            return cross.T @ torch.cholesky_solve(inner, factor)

        v = top_eigenvectors(fitted_gram, width, rank, x.device)
        u = torch.cholesky_solve(cross @ v.T, factor).T
    rest = bias - (mean @ u.T) @ v
    u = torch.cat([u, x.new_zeros(1, width)])
    v = torch.cat([v, rest[None]])
    c = torch.cat([x.new_zeros(len(u) - 1), x.new_ones(1)])
    return _padded(u, v, c, rank + 1)


def top_eigenvectors(apply: Callable[[Tensor], Tensor], width: int, count: int, device: torch.device) -> Tensor:
    """The leading eigenvectors of a positive semi-definite (D, D) operator, largest first.

    Block subspace iteration from a fixed start, with more vectors than are wanted, until the wanted eigenvalues stand
    still; thin products only, where a full decomposition of D = 576 takes a hundred times as long.

    Args:
        apply: maps (D, k) to (D, k), float64. width: D.
    Returns: (r, D) orthonormal rows; fewer than `count` where the operator has a lower rank.
    """
    start = torch.randn(width, min(width, count + 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.linalg.qr(start.to(device)).Q
    values = q.new_zeros(q.shape[1])
    for _ in range(_MOST_ITERATIONS):
        applied = apply(q)
        found, vectors = torch.linalg.eigh(q.T @ applied)  # ascending
        settled = bool(((found - values).abs()[-count:] <= 1e-12 * found[-1].abs()).all())
        values = found
        q = torch.linalg.qr(applied @ vectors).Q if not settled else q @ vectors
        if settled:
            break
    else:
        found, vectors = torch.linalg.eigh(q.T @ apply(q))
        q, values = q @ vectors, found
    present = int((values[-count:] > values[-1].clamp_min(1e-300) * 1e-14).sum())
    top: Tensor = q[:, -present:].T.flip(0) if present else q.new_zeros(0, width)
    return top


def _padded(u: Tensor, v: Tensor, c: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tables with zero rows up to `rows`, so that layers of one edit have one rank."""
    missing = rows - len(u)
    if missing > 0:
        zeros = u.new_zeros(missing, u.shape[1])
        u, v, c = torch.cat([u, zeros]), torch.cat([v, zeros]), torch.cat([c, c.new_zeros(missing)])
    return u.float(), v.float(), c.float()
