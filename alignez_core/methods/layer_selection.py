"""Selection of layers to edit: those whose directions agree with one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignez_core.errors import InvalidInput, LayerOutOfRange
from alignez_core.methods.directions import Directions
from alignez_core.spec.limits import LAYER_RULES, LayerRule


@dataclass(frozen=True)
class LayerChoice:
    """The chosen layers with their evidence.

    Args:
        layers: indices, ascending.
        scores: (L,) of every layer of the model; higher was better ("consistency") or lower was ("separation").
        rule: the rule that chose.
    """

    layers: tuple[int, ...]
    scores: tuple[float, ...]
    rule: LayerRule


def select_layers(directions: Directions, keep: int, rule: LayerRule = "consistency") -> LayerChoice:
    """The `keep` layers to edit; ties go to the lower index.

    Args:
        directions: of all L layers.
        keep: 1 to L.
        rule: "consistency": highest sum of |cos| of a layer's theta_help with every layer's (itself included, a
            constant). "separation": lowest |cos(theta_help, theta_harm)|.
    Raises: LayerOutOfRange: keep exceeds L. InvalidInput: unknown rule or keep < 1.
    Source: AlignEZ (arXiv 2406.03642), section 2.4 and appendix A.3. Deviations: |cos| instead of cos, because a
        singular vector's sign is arbitrary and the edit does not depend on it; a descending stable sort, because
        A.3's code as printed raises. "separation" is ours.
    """
    scores = layer_scores(directions, rule)
    n_layers = len(scores)
    if keep < 1:
        raise InvalidInput("layers", "at least 1 layer must be kept")
    if keep > n_layers:
        raise LayerOutOfRange(keep - 1, n_layers)
    order = torch.argsort(scores, descending=rule == "consistency", stable=True)
    layers = tuple(sorted(int(i) for i in order[:keep]))
    return LayerChoice(layers, tuple(float(s) for s in scores), rule)


def layer_scores(directions: Directions, rule: LayerRule = "consistency") -> Tensor:
    """(L,) float64 score of each layer under a rule."""
    if rule == "consistency":
        theta = directions.theta_help.double()
        # Rounded, so that layers which tie in exact arithmetic tie here too and the lower index wins.
        return (theta @ theta.T).abs().sum(dim=1).round(decimals=6)
    if rule == "separation":
        return directions.cosine.double().round(decimals=6)
    raise InvalidInput("layer_rule", f"{rule!r} is not one of {', '.join(LAYER_RULES)}")
