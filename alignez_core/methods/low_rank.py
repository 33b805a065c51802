"""Closed-form fit of one layer's edit: ridge regression truncated to a low rank, plus one row for the mean.

Shapes: T rows, D hidden size, r rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alignez_core.errors import DegenerateEmbeddings
from alignez_core.spec.config import DEFAULT_RIDGE

#: Limit of the subspace iteration; real activations converge within 30 iterations.
_MOST_ITERATIONS = 100


def low_rank(x: Tensor, gap: Tensor, rank: int, ridge: float = DEFAULT_RIDGE) -> tuple[Tensor, Tensor, Tensor]:
    """(U, V, c) of the edit x + (x·Uᵀ + c)·V that is closest to x + gap.

    Ridge regression on centred rows, truncated to `rank` along the leading right singular vectors of its fitted values
    (reduced-rank regression), plus a last row for the mean. Arithmetic is in float64.

    Args:
        x, gap: (T, D).
        rank: r; 0 fits only the mean.
        ridge: penalty in units of the normal matrix's mean diagonal.
    Returns: U (r + 1, D), V (r + 1, D), c (r + 1,), float32. Unused rows are zero, so that all layers have one rank.
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
        # The weights A = N⁻¹·M are not formed: `fitted_gram` applies the Gram matrix of the fitted values, AᵀCA.
        gram, cross = centred.T @ centred, centred.T @ target
        normal = gram.clone()
        normal.diagonal().add_(ridge * gram.diagonal().mean())
        factor = torch.linalg.cholesky(normal)

        def fitted_gram(q: Tensor) -> Tensor:
            inner = gram @ torch.cholesky_solve(cross @ q, factor)
            return cross.T @ torch.cholesky_solve(inner, factor)

        v = top_eigenvectors(fitted_gram, width, rank, x.device)
        u = torch.cholesky_solve(cross @ v.T, factor).T
    found = len(u)
    read, write, offset = x.new_zeros(rank + 1, width), x.new_zeros(rank + 1, width), x.new_zeros(rank + 1)
    read[:found], write[:found] = u, v
    write[found], offset[found] = bias - (mean @ u.T) @ v, 1.0
    return read.float(), write.float(), offset.float()


def top_eigenvectors(apply: Callable[[Tensor], Tensor], width: int, count: int, device: torch.device) -> Tensor:
    """The leading eigenvectors of a positive semi-definite (D, D) operator, largest eigenvalue first.

    Block subspace iteration from a fixed start with `count` + 8 vectors, until the leading eigenvalues converge. It
    needs only thin products; a full decomposition takes 100 times as long at D = 576.

    Args:
        apply: the operator, (D, k) to (D, k), float64.
        width: D.
    Returns: (r, D) orthonormal rows, r = min(`count`, rank of the operator).
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
