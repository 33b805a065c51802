"""Layer selection: the layers that agree are kept, whatever the signs of their directions."""

from __future__ import annotations

import pytest
import torch

from alignez_core.errors import InvalidInput, LayerOutOfRange
from alignez_core.methods.directions import Directions
from alignez_core.methods.layer_selection import select_layers


def directions(theta_help: torch.Tensor, theta_harm: torch.Tensor | None = None) -> Directions:
    theta_help = theta_help / theta_help.norm(dim=1, keepdim=True)
    theta_harm = theta_help if theta_harm is None else theta_harm / theta_harm.norm(dim=1, keepdim=True)
    ones = torch.ones(len(theta_help))
    return Directions(theta_help, theta_harm, ones, ones, (theta_help * theta_harm).sum(-1).abs())


def test_agreeing_layers_are_kept_under_random_signs() -> None:
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(64, generator=g)
    theta = torch.randn(12, 64, generator=g)
    agreeing = (1, 4, 6, 7, 11)
    for i, layer in enumerate(agreeing):
        theta[layer] = (-1) ** i * (shared + 0.3 * torch.randn(64, generator=g))
    choice = select_layers(directions(theta), keep=5)
    assert choice.layers == agreeing
    assert len(choice.scores) == 12
    assert choice.rule == "consistency"


def test_ties_go_to_the_lower_index() -> None:
    same = torch.ones(6, 8)
    assert select_layers(directions(same), keep=3).layers == (0, 1, 2)
    assert select_layers(directions(same), keep=2, rule="separation").layers == (0, 1)


def test_separation_prefers_layers_where_help_and_harm_differ() -> None:
    help_, harm = torch.eye(4), torch.eye(4).clone()
    harm[2] = torch.tensor([1.0, 0, 0, 0])  # orthogonal to help there, parallel elsewhere
    assert select_layers(directions(help_, harm), keep=1, rule="separation").layers == (2,)


def test_wrong_requests_name_what_is_wrong() -> None:
    with pytest.raises(LayerOutOfRange, match="4 layers"):
        select_layers(directions(torch.eye(4)), keep=5)
    with pytest.raises(InvalidInput, match="layers"):
        select_layers(directions(torch.eye(4)), keep=0)
    with pytest.raises(InvalidInput, match="layer_rule"):
        select_layers(directions(torch.eye(4)), keep=1, rule="best")  # type: ignore[arg-type]
