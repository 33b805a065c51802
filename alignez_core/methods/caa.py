"""`caa`: contrastive activation addition, a common baseline.

The edit adds, at every answer position, the mean difference between preferred and dispreferred answers in the residual
stream after one block. Layer and multiplier are chosen on the tune split.

Source: Rimsky et al., Steering Llama 2 via Contrastive Activation Addition (arXiv 2312.06681), section 3. Deviations:
open answers instead of multiple-choice letters, so the mean is over all answer tokens; the vector is added to the MLP's
output, which is equivalent, because the block adds this output to the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import ScoreRequest
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.base import Candidate, Material, Needs, chosen_layers
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName

#: Default layers as shares of the model's depth, and the multipliers of all candidates.
DEPTHS = (0.3, 0.5, 0.7)
MULTIPLIERS = (0.5, 1.0, 2.0, 4.0)


class CAA:
    """The method `caa`."""

    name: MethodName = "caa"

    def needs(self, config: FitConfig) -> Needs:
        return Needs(harm_answers=True, walks=True)

    def candidates(self, material: Material) -> list[Candidate]:
        layers = chosen_layers(material.config, material.engine.info.n_layers, DEPTHS)
        made = []
        vectors = mean_differences(material, layers)
        for layer in layers:
            for multiplier in MULTIPLIERS:
                plan = EditPlan.additive(
                    [layer], vectors[layer][None], multiplier, steps=material.config.effective_steps
                )
                settings = {"layers": [layer], "multiplier": multiplier}
                made.append(Candidate(f"layer {layer}, multiplier {multiplier:g}", "caa", settings, (plan,)))
        return made


def mean_differences(material: Material, layers: Sequence[int]) -> dict[int, Tensor]:
    """Layer → (D,) vector: mean over samples of the mean over answer tokens, preferred minus dispreferred.

    Raises: DegenerateEmbeddings: no sample has both answers.
    """
    engine, form = material.engine, material.engine.prompt_format
    rows = [s for s in material.samples if material.help.get(s.index) and material.harm.get(s.index)]
    if not rows:
        raise DegenerateEmbeddings("no sample has both a preferred and a dispreferred answer")
    sides: list[tuple[dict[int, Tensor], float]] = []
    for answers in (material.help, material.harm):
        walk = engine.walk([ScoreRequest(form.wrap(s.query), answers[s.index]) for s in rows])
        try:
            means = {}
            for done, layer in enumerate(layers):
                parts = torch.split(walk.after(layer).r, list(walk.lengths))
                means[layer] = torch.stack([part.mean(0) for part in parts]).mean(0)
                material.report(done + len(sides) * len(layers), 2 * len(layers))
            sides.append((means, walk.site_scale))
        finally:
            walk.close()
    (help_, scale), (harm, _) = sides
    return {layer: ((help_[layer] - harm[layer]) / scale).cpu() for layer in layers}
