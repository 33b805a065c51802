"""Directions of contrasting representations, one per layer.

Shapes: N samples, L layers, D hidden size. Arithmetic is in float32; float64 input stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignez_core.errors import DegenerateEmbeddings, InvalidInput

#: A matrix defines no direction if its largest singular value is below this. The bound is absolute, because activations
#: are of order 1.
EPS = 1e-6

#: Matrices with a larger entry are rescaled before squaring.
_LARGE = 1e8


@dataclass(frozen=True)
class Directions:
    """Result of `fit_directions`, per layer.

    Args:
        theta_help, theta_harm: (L, D) unit rows.
        energy_help, energy_harm: (L,) share of the rows' energy along theta: first squared singular value ÷ sum of all.
        cosine: (L,) |cos(theta_help, theta_harm)|. A value near 1 means that both directions are the shared mean; the
            sequential edit then removes nearly the whole activation.
    """

    theta_help: Tensor
    theta_harm: Tensor
    energy_help: Tensor
    energy_harm: Tensor
    cosine: Tensor


def top_direction(rows: Tensor) -> Tensor:
    """Unit vector of largest energy in one layer, with the sign that agrees with the mean row.

    Args:
        rows: (N, D), uncentred; if N < D, the N×N Gram matrix is decomposed.
    Returns: (D,) norm 1, float32 (float64 for float64 input).
    Raises: DegenerateEmbeddings: no rows, values that are not finite, or a largest singular value below `EPS`.
    Source: AlignEZ (arXiv 2406.03642), eq. 1. Deviation: the sign rule is ours; an SVD does not define the sign.
    """
    if rows.ndim != 2:
        raise InvalidInput("rows", f"shape {tuple(rows.shape)} is not (N, D)")
    theta, _ = top_directions(rows.unsqueeze(0))
    return theta[0]


def top_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`top_direction` of M matrices, in one batched eigendecomposition.

    Args:
        rows: (M, N, D), uncentred.
    Returns: theta (M, D) unit rows; energy (M,), first squared singular value ÷ sum of all.
    Raises: DegenerateEmbeddings: as `top_direction`; the message names the first such matrix as a layer.
    """
    return _top_directions([rows])[0]


def _top_directions(groups: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """`top_directions` of several (M, N, D) tensors of one shape; all Gram matrices are decomposed as one batch."""
    wide = any(group.dtype == torch.float64 for group in groups)
    rows = [group.to(torch.float64 if wide else torch.float32) for group in groups]
    m, n, d = rows[0].shape
    if n == 0 or d == 0:
        raise DegenerateEmbeddings("no rows: a direction needs at least one sample")
    scale = torch.cat([torch.maximum(group.amax(dim=(1, 2)), -group.amin(dim=(1, 2))) for group in rows])
    largest = float(scale.max())
    if not math.isfinite(largest):  # amax and amin propagate NaN and infinity
        raise DegenerateEmbeddings("the representations hold values that are not finite")
    _require_energy(scale, m)
    if largest > _LARGE:
        # Division by the largest entry prevents overflow. It does not change the singular vectors, and the check of the
        # threshold multiplies by the scale again. Underflow cannot occur, because `EPS` excludes such small entries.
        rows = [group / part.view(m, 1, 1) for group, part in zip(rows, torch.split(scale, m), strict=True)]
    else:
        scale = torch.ones_like(scale)
    short = n < d
    values, vectors = torch.linalg.eigh(torch.cat([x @ x.mT if short else x.mT @ x for x in rows]))  # ascending
    values = values.clamp_min(0)
    _require_energy(scale * values[:, -1].sqrt(), m)
    energy = values[:, -1] / values.sum(dim=1)
    top = vectors[:, :, -1].unsqueeze(1)
    # The sum of the left singular vector has the sign of the mean row along theta: 1ᵀX·(Xᵀu) = λ·1ᵀu.
    theta = torch.cat([part @ x for part, x in zip(torch.split(top, m), rows, strict=True)]) if short else top
    agree = top.sum(dim=2) if short else torch.cat([x.mean(dim=1) for x in rows]).mul(top[:, 0]).sum(1, keepdim=True)
    theta = theta.squeeze(1)
    length = torch.linalg.vector_norm(theta, dim=1, keepdim=True)
    theta = theta / torch.where(agree < 0, -length, length)
    return list(zip(torch.split(theta, m), torch.split(energy, m), strict=True))


def fit_directions(help: Tensor, harm: Tensor) -> Directions:
    """The help and the harm direction of every layer.

    Args:
        help, harm: (N, L, D) representations of the preferred and the dispreferred side.
    Raises: InvalidInput: the shapes differ. DegenerateEmbeddings: as `top_direction`.
    Source: AlignEZ (arXiv 2406.03642), Algorithm 1 and eq. 1.
    """
    if help.ndim != 3:
        raise InvalidInput("help", f"shape {tuple(help.shape)} is not (N, L, D)")
    if help.shape != harm.shape:
        raise InvalidInput("harm", f"shape {tuple(harm.shape)} differs from help's {tuple(help.shape)}")
    found = _top_directions([help.transpose(0, 1), harm.transpose(0, 1)])
    (theta_help, energy_help), (theta_harm, energy_harm) = found
    cosine = (theta_help * theta_harm).sum(-1).abs().clamp_max(1.0)
    return Directions(theta_help, theta_harm, energy_help, energy_harm, cosine)


def _require_energy(largest: Tensor, layers: int) -> None:
    if float(largest.min()) < EPS:
        index = int((largest < EPS).nonzero()[0])
        raise DegenerateEmbeddings(
            f"the rows of layer index {index % layers} are (nearly) all zero:"
            f" largest singular value {float(largest[index]):.3g}"
        )
