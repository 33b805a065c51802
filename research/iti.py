"""Inference-time intervention, the paper's second baseline with ground-truth pairs.

A logistic probe per attention head separates preferred from dispreferred answers; at each step, the heads with the most
accurate probes are shifted by α σ θ: θ the unit difference of the two means of the head's output, σ the standard
deviation along it.

Source: Li et al., Inference-Time Intervention (arXiv 2306.03341), sections 3 and 4 (mass mean shift). Deviations: texts
are a query and an answer in the model's prompt format, not TruthfulQA's; the shift begins at the last prompt token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignez_core.engines.base import Prompt
from research.hooked import Change, Hook, HookedModel

#: Numbers of heads and α of the grid. The paper has 48 of 1024 heads and α = 15 for a 7B model.
HEADS = (8, 24, 48)
ALPHAS = (1.0, 5.0, 15.0)
#: Share of pairs whose heads' probes are validated on.
_VALIDATED = 0.2
#: Ridge penalty of the probes, on standardised features, and the Newton steps of their fit.
_RIDGE, _STEPS = 1.0, 12


@dataclass(frozen=True, eq=False)
class Probes:
    """Accuracy, direction and spread of every attention head. L layers, H heads, W head size.

    Args:
        accuracy: (L, H) of each head's probe on validation pairs.
        direction: (L, H, W) unit rows, from dispreferred to preferred.
        sigma: (L, H) standard deviation of the head's outputs along its direction.
    """

    accuracy: Tensor
    direction: Tensor
    sigma: Tensor

    def top(self, heads: int) -> list[tuple[int, int]]:
        """(layer, head) of the most accurate probes; ties go to the earlier head."""
        per_layer = self.accuracy.shape[1]
        order = torch.sort(self.accuracy.flatten(), descending=True, stable=True).indices[:heads].tolist()
        return [(i // per_layer, i % per_layer) for i in order]


def fit_probes(model: HookedModel, preferred: Sequence[Prompt], dispreferred: Sequence[Prompt]) -> Probes:
    """Probes of all heads at the last token of each text.

    Args:
        preferred, dispreferred: prompts with answers, pair by pair; at least 5.
    Raises: UnknownArchitecture. ValueError: too few pairs.
    """
    if len(preferred) < 5:
        raise ValueError(f"{len(preferred)} pairs are too few to fit and validate probes on")
    rows = [model.inputs_at_last(side, model.projections()) for side in (preferred, dispreferred)]
    good, bad = (side.reshape(len(preferred), model.n_layers, model.n_heads, -1) for side in rows)
    held = max(1, int(len(preferred) * _VALIDATED))
    fit, validated = slice(None, -held), slice(-held, None)
    difference = good[fit].mean(0) - bad[fit].mean(0)
    direction = difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    along = (torch.cat([good[fit], bad[fit]]) * direction).sum(-1)
    accuracy = probe_accuracy(
        torch.cat([good[fit], bad[fit]]), torch.cat([good[validated], bad[validated]]), len(good[fit]), held
    )
    return Probes(accuracy, direction, along.std(0))


def probe_accuracy(fit: Tensor, validated: Tensor, fit_good: int, validated_good: int) -> Tensor:
    """(L, H) accuracy on validation rows of a logistic regression per head, by Newton steps on all heads at once.

    Args:
        fit, validated: (n, L, H, W); the first `…_good` rows are preferred answers, the others dispreferred ones.
    """
    mean, deviation = fit.mean(0), fit.std(0).clamp_min(1e-6)
    x, other = (_features((rows - mean) / deviation) for rows in (fit, validated))
    y = torch.zeros(len(fit), dtype=torch.float64)
    y[:fit_good] = 1.0
    weights = x.new_zeros(x.shape[0], x.shape[2])
    penalty = _RIDGE * torch.eye(x.shape[2], dtype=x.dtype)
    penalty[-1, -1] = 1e-6  # the constant is free
    for _ in range(_STEPS):
        p = torch.sigmoid((x @ weights[..., None])[..., 0])
        gradient = ((p - y)[:, None] @ x)[:, 0] + weights @ penalty
        curvature = (x * (p * (1 - p))[..., None]).transpose(1, 2) @ x + penalty
        weights = weights - torch.linalg.solve(curvature, gradient)
    right = ((other @ weights[..., None])[..., 0] > 0) == (torch.arange(other.shape[1]) < validated_good)
    return right.double().mean(1).reshape(fit.shape[1:3]).float()


def shift_hooks(model: HookedModel, probes: Probes, heads: int, alpha: float) -> list[Hook]:
    """The hooks that add α σ θ to the `heads` best heads, before the attention's output projection."""
    n_layers, n_heads, size = probes.direction.shape
    shifts = torch.zeros(n_layers, n_heads, size)
    for layer, head in probes.top(heads):
        shifts[layer, head] = alpha * probes.sigma[layer, head] * probes.direction[layer, head]
    projections = model.projections()
    return [
        Hook(projections[layer], _added(shifts[layer].flatten().to(model.model.device)), on_input=True)
        for layer in range(n_layers)
        if shifts[layer].any()
    ]


def _added(shift: Tensor) -> Change:
    return lambda x, step: x + shift.to(x.dtype)


def _features(rows: Tensor) -> Tensor:
    """(heads, n, W + 1) float64 from (n, L, H, W), with a constant."""
    flat = rows.double().flatten(1, 2).transpose(0, 1)
    return torch.cat([flat, flat.new_ones(*flat.shape[:2], 1)], dim=-1)
