"""Direction vectors from contrasting representations, one per layer.

Shapes: N samples, L layers, D hidden size, K neighbours. All in float32 (float64 input stays float64).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignez_core.errors import DegenerateEmbeddings, InvalidInput

#: A matrix whose largest singular value is below this (relative to its row count and width: absolute, activations
#: are of order 1) defines no direction.
EPS = 1e-6


@dataclass(frozen=True)
class Directions:
    """What `fit_directions` found, per layer.

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
    """What `fit_transport` found: theta (L, D) unit rows, tau (L,) the persona's mean component, energy (L,)."""

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
    rows = rows if rows.dtype == torch.float64 else rows.float()
    m, n, d = rows.shape
    if n == 0 or d == 0:
        raise DegenerateEmbeddings("no rows: a direction needs at least one sample")
    # Rescaled by the largest entry, so that squaring neither overflows nor underflows; the singular vectors are the
    # same and the scale returns for the threshold.
    scale = rows.abs().amax(dim=(1, 2))
    if not bool(torch.isfinite(scale).all()):  # a maximum keeps NaN and infinity, so no second pass is needed
        raise DegenerateEmbeddings("the representations hold values that are not finite")
    _require_energy(scale)
    scaled = rows / scale.view(m, 1, 1)
    if n < d:
        values, left = torch.linalg.eigh(scaled @ scaled.mT)  # ascending
        theta = (left[:, :, -1].unsqueeze(1) @ scaled).squeeze(1)
    else:
        values, right = torch.linalg.eigh(scaled.mT @ scaled)
        theta = right[:, :, -1]
    values = values.clamp_min(0)
    _require_energy(scale * values[:, -1].sqrt())
    theta = theta / theta.norm(dim=1, keepdim=True)
    agree = (scaled.mean(dim=1) * theta).sum(dim=1)
    theta = torch.where(agree.unsqueeze(1) < 0, -theta, theta)
    return theta, values[:, -1] / values.sum(dim=1)


def fit_directions(help: Tensor, harm: Tensor) -> Directions:
    """The helpful and the harmful direction of every layer.

    Args:
        help, harm: (N, L, D) representations of the preferred and dispreferred side.
    Raises: InvalidInput: shapes that differ. DegenerateEmbeddings: as `top_direction`.
    Source: AlignEZ (arXiv 2406.03642), Algorithm 1 and eq. 1.
    """
    _same_shape("harm", help, harm)
    theta_help, energy_help = top_directions(help.transpose(0, 1))
    theta_harm, energy_harm = top_directions(harm.transpose(0, 1))
    cosine = (theta_help * theta_harm).sum(-1).abs().clamp_max(1.0)
    return Directions(theta_help, theta_harm, energy_help, energy_harm, cosine)


def fit_transport(help: Tensor, plain: Tensor) -> Transport:
    """The direction from the plain prompt to the persona's prompt, and how far along it the persona lies.

    Args:
        help, plain: (N, L, D) representations of the same queries with and without the persona.
    Returns: theta = top right singular vector of help − plain, tau = mean of ⟨help, theta⟩, per layer.
    Raises: InvalidInput: shapes that differ. DegenerateEmbeddings: the persona changes nothing at some layer.
    Source: ours (design, section 3.6).
    """
    _same_shape("plain", help, plain)
    theta, energy = top_directions((help - plain).transpose(0, 1))
    tau = torch.einsum("nld,ld->nl", help.to(theta.dtype), theta).mean(0)
    return Transport(theta, tau, energy)


def _same_shape(name: str, first: Tensor, second: Tensor) -> None:
    if first.ndim != 3:
        raise InvalidInput("help", f"shape {tuple(first.shape)} is not (N, L, D)")
    if first.shape != second.shape:
        raise InvalidInput(name, f"shape {tuple(second.shape)} differs from help's {tuple(first.shape)}")


def _require_energy(largest: Tensor) -> None:
    weak = (largest < EPS).nonzero()
    if len(weak):
        index = int(weak[0])
        raise DegenerateEmbeddings(
            f"the rows of layer index {index} are (nearly) all zero: largest singular value {float(largest[index]):.3g}"
        )
