"""`alignez`: the paper's edit, which removes the component along harm and doubles the component along help.

Source: AlignEZ (arXiv 2406.03642), Algorithm 1 and sections 2.1 to 2.4. The deviations are listed in `directions`,
`layer_selection` and `editing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.base import Candidate, Material, Needs
from alignez_core.methods.directions import Directions, fit_directions
from alignez_core.methods.layer_selection import LayerChoice, layer_scores, select_layers
from alignez_core.spec.config import DEFAULT_ALIGNEZ_LAYERS, FitConfig
from alignez_core.spec.limits import MethodName


class AlignEZ:
    """The method `alignez`."""

    name: MethodName = "alignez"

    def needs(self, config: FitConfig) -> Needs:
        by_answers = (config.representation or "prompt") != "prompt"
        return Needs(characteristics=True, help_answers=by_answers, harm_answers=by_answers, readings=True)

    def candidates(self, material: Material) -> list[Candidate]:
        config, readings = material.config, material.readings
        if readings is None:
            raise DegenerateEmbeddings("alignez fits on readings, and there are none")
        found = fit_directions(readings.help, readings.harm)
        choice = _choose_layers(config, found, material.engine.info.n_layers)
        edited = list(choice.layers)
        plan = EditPlan.alignez(
            choice.layers, found.theta_harm[edited], found.theta_help[edited], 1.0, config.edit_rule or "sequential",
            steps=config.effective_steps,
        )  # fmt: skip
        conditional = config.conditional is not False
        diagnostics: dict[str, Any] = {
            "layer_rule": choice.rule,
            "layer_scores": [round(score, 6) for score in choice.scores],
            "cosine_help_harm": [round(float(v), 6) for v in found.cosine],
            "energy_help": [round(float(v), 6) for v in found.energy_help],
            "energy_harm": [round(float(v), 6) for v in found.energy_harm],
        }
        settings = {"layers": edited, "edit_rule": config.edit_rule or "sequential"}
        rows = readings.at(choice.layers) if conditional else None
        return [Candidate("alignez", "alignez", settings, (plan,), None, rows, diagnostics=diagnostics)]


def neighbor_plan(config: FitConfig, layers: Sequence[int], help: Tensor, harm: Tensor, strength: float) -> EditPlan:
    """The edit of one request, fitted on its K nearest fit queries.

    Args:
        layers: L edited layers.
        help, harm: (K, L, D) readings of the neighbours.
    Raises: DegenerateEmbeddings: the rows define no direction.
    Source: AlignEZ (arXiv 2406.03642), section 2.2 (sample-conditional estimation).
    """
    found = fit_directions(help, harm)
    return EditPlan.alignez(
        layers, found.theta_harm, found.theta_help, strength, config.edit_rule or "sequential",
        steps=config.effective_steps,
    )  # fmt: skip


def _choose_layers(config: FitConfig, found: Directions, n_layers: int) -> LayerChoice:
    rule = config.layer_rule or "consistency"
    wanted = min(DEFAULT_ALIGNEZ_LAYERS, n_layers) if config.layers is None else config.layers
    if isinstance(wanted, int):
        return select_layers(found, wanted, rule)
    layers = tuple(range(n_layers)) if wanted == "all" else tuple(wanted)
    return LayerChoice(layers, tuple(float(s) for s in layer_scores(found, rule)), rule)
