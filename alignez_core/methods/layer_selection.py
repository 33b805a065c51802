"""Selection of the layers to edit by the agreement of their directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignez_core.errors import InvalidInput, LayerOutOfRange
from alignez_core.methods.directions import Directions
from alignez_core.spec.limits import LAYER_RULES, LayerRule


@dataclass(frozen=True)
class LayerChoice:
    """Selected layers with the scores of all layers.

    Args:
        layers: layer indices, ascending.
        scores: (L,) one per layer of the model. "consistency" selects high scores, "separation" low ones.
    """

    layers: tuple[int, ...]
    scores: tuple[float, ...]
    rule: LayerRule


def select_layers(directions: Directions, keep: int, rule: LayerRule = "consistency") -> LayerChoice:
    """The `keep` best layers; the lower index wins a tie.

    Args:
        directions: directions of all L layers.
        keep: 1 to L.
        rule: "consistency": highest sum of |cos| between the layer's theta_help and those of all layers, itself
            included. "separation": lowest |cos(theta_help, theta_harm)|.
    Raises: LayerOutOfRange: keep exceeds L. InvalidInput: keep < 1, or an unknown rule.
    Source: AlignEZ (arXiv 2406.03642), section 2.4 and appendix A.3. Deviations: |cos| instead of cos, because the sign
        of a singular vector is arbitrary and the edit does not depend on it; a descending stable sort, because the code
        printed in A.3 raises an error. "separation" is ours.
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
    """(L,) float64 score of each layer. Raises: InvalidInput: an unknown rule."""
    if rule == "consistency":
        theta = directions.theta_help.double()
        # Rounded, so that layers that tie in exact arithmetic also tie here.
        return (theta @ theta.T).abs().sum(dim=1).round(decimals=6)
    if rule == "separation":
        return directions.cosine.double().round(decimals=6)
    raise InvalidInput("layer_rule", f"{rule!r} is not one of {', '.join(LAYER_RULES)}")
