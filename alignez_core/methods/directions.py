"""Direction vectors from contrasting representations, one per layer.

Shapes: N samples, L layers, D hidden size, K neighbours. All in float32 (float64 input stays float64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignez_core.errors import DegenerateEmbeddings, InvalidInput

#: A matrix whose largest singular value is below this (relative to its row count and width: absolute, activations
#: are of order 1) defines no direction.
EPS = 1e-6

#: Entries up to this are squared and summed as they are.
_LARGE = 1e8


@dataclass(frozen=True)
class Directions:
    """Result of `fit_directions`, per layer.

    Args:
        theta_help, theta_harm: (L, D) unit rows.
        energy_help, energy_harm: (L,) share of the rows' energy along theta (first squared singular value ÷ sum).
        cosine: (L,) |cos(theta_help, theta_harm)|. Near 1 means that both only found the shared mean, and that the
            sequential edit would then delete nearly the whole activation.
    """

    theta_help: Tensor
    theta_harm: Tensor
    energy_help: Tensor
    energy_harm: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class Transport:
    """Result of `fit_transport`: theta (L, D) unit rows, tau (L,) the persona's mean component, energy (L,)."""

    theta: Tensor
    tau: Tensor
    energy: Tensor


def top_direction(rows: Tensor) -> Tensor:
    """Unit vector of largest energy in one layer, turned to agree with the mean row.

    Args:
        rows: (N, D), uncentred; computed from the N×N Gram matrix when N < D.
    Returns: (D,) norm 1, float32 (float64 for float64 input).
    Raises: DegenerateEmbeddings: no rows, values that are not finite, or largest singular value below ``EPS``.
    Source: AlignEZ (arXiv 2406.03642), eq. 1. Deviation: the sign rule is ours (the SVD leaves it free).
    """
    if rows.ndim != 2:
        raise InvalidInput("rows", f"shape {tuple(rows.shape)} is not (N, D)")
    theta, _ = top_directions(rows.unsqueeze(0))
    return theta[0]


def top_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`top_direction` of M matrices at once (one batched eigendecomposition, not M).

    Args:
        rows: (M, N, D), uncentred.
    Returns: theta (M, D) unit rows, and energy (M,), the first squared singular value's share of all.
    Raises: DegenerateEmbeddings: as `top_direction`, naming the first matrix (layer) concerned.
    """
    return _top_directions([rows])[0]


def _top_directions(groups: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """`top_directions` of several (M, N, D) of one shape: their small Gram matrices are decomposed as one batch."""
    wide = any(group.dtype == torch.float64 for group in groups)
    rows = [group.to(torch.float64 if wide else torch.float32) for group in groups]
    m, n, d = rows[0].shape
    if n == 0 or d == 0:
        raise DegenerateEmbeddings("no rows: a direction needs at least one sample")
    scale = torch.cat([torch.maximum(group.amax(dim=(1, 2)), -group.amin(dim=(1, 2))) for group in rows])
    largest = float(scale.max())
    if not math.isfinite(largest):  # a maximum keeps NaN and infinity, so no second pass is needed
        raise DegenerateEmbeddings("the representations hold values that are not finite")
    _require_energy(scale, m)
    if largest > _LARGE:
        # Rescaled by the largest entry, so that squaring does not overflow; the singular vectors are the same and the
        # scale returns for the threshold. Underflow needs no such care: `EPS` has already refused what is that small.
        rows = [group / part.view(m, 1, 1) for group, part in zip(rows, torch.split(scale, m), strict=True)]
    else:
        scale = torch.ones_like(scale)
    short = n < d
    values, vectors = torch.linalg.eigh(torch.cat([x @ x.mT if short else x.mT @ x for x in rows]))  # ascending
    values = values.clamp_min(0)
    _require_energy(scale * values[:, -1].sqrt(), m)
    energy = values[:, -1] / values.sum(dim=1)
    top = vectors[:, :, -1].unsqueeze(1)
    # The mean row lies along theta as the left vector's sum does: 1ᵀX·(Xᵀu) = λ·1ᵀu.
    theta = torch.cat([part @ x for part, x in zip(torch.split(top, m), rows, strict=True)]) if short else top
    agree = top.sum(dim=2) if short else torch.cat([x.mean(dim=1) for x in rows]).mul(top[:, 0]).sum(1, keepdim=True)
    theta = theta.squeeze(1)
    length = torch.linalg.vector_norm(theta, dim=1, keepdim=True)
    theta = theta / torch.where(agree < 0, -length, length)
    return list(zip(torch.split(theta, m), torch.split(energy, m), strict=True))


def fit_directions(help: Tensor, harm: Tensor) -> Directions:
    """The helpful and the harmful direction of every layer.

    Args:
        help, harm: (N, L, D) representations of the preferred and dispreferred side.
    Raises: InvalidInput: shapes that differ. DegenerateEmbeddings: as `top_direction`.
    Source: AlignEZ (arXiv 2406.03642), Algorithm 1 and eq. 1.
    """
    _same_shape("harm", help, harm)
    found = _top_directions([help.transpose(0, 1), harm.transpose(0, 1)])
    (theta_help, energy_help), (theta_harm, energy_harm) = found
    cosine = (theta_help * theta_harm).sum(-1).abs().clamp_max(1.0)
    return Directions(theta_help, theta_harm, energy_help, energy_harm, cosine)


def fit_transport(help: Tensor, plain: Tensor) -> Transport:
    """The direction from the plain prompt to the persona's prompt, and how far along it the persona lies.

    Args:
        help, plain: (N, L, D) representations of the same queries with and without the persona.
    Returns: theta = top right singular vector of help − plain, tau = mean of ⟨help, theta⟩, per layer.
    Raises: InvalidInput: shapes that differ. DegenerateEmbeddings: the persona changes nothing at some layer.
    Source: ours (design, section 3.4).
    """
    _same_shape("plain", help, plain)
    theta, energy = top_directions((help - plain).transpose(0, 1))
    tau = (help.to(theta.dtype).mean(0) * theta).sum(1)
    return Transport(theta, tau, energy)


def _same_shape(name: str, first: Tensor, second: Tensor) -> None:
    if first.ndim != 3:
        raise InvalidInput("help", f"shape {tuple(first.shape)} is not (N, L, D)")
    if first.shape != second.shape:
        raise InvalidInput(name, f"shape {tuple(second.shape)} differs from help's {tuple(first.shape)}")


def _require_energy(largest: Tensor, layers: int) -> None:
    if float(largest.min()) < EPS:
        index = int((largest < EPS).nonzero()[0])
        raise DegenerateEmbeddings(
            f"the rows of layer index {index % layers} are (nearly) all zero:"
            f" largest singular value {float(largest[index]):.3g}"
        )
