"""`transport`: moves the component along help − plain to the persona's level, at the first position only.

For comparison: it works on persona-nano and has no effect on real models (docs/effect.md).
"""

from __future__ import annotations

from alignez_core.editing import EditPlan
from alignez_core.methods.base import Candidate, Material, Needs
from alignez_core.methods.directions import fit_transport
from alignez_core.prompts import persona_prompt
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName


class TransportMethod:
    """The method behind `transport`."""

    name: MethodName = "transport"

    def needs(self, config: FitConfig) -> Needs:
        return Needs(help_answers=False)

    def candidates(self, material: Material) -> list[Candidate]:
        engine, form, config = material.engine, material.engine.prompt_format, material.config
        prompts = [persona_prompt(form, s.query, s.persona, "help") for s in material.samples]
        prompts += [form.wrap(s.query) for s in material.samples]
        rows = engine.represent(prompts)
        count = len(material.samples)
        found = fit_transport(rows[:count], rows[count:])
        n_layers = engine.info.n_layers
        layers = config.layers if isinstance(config.layers, tuple) else tuple(range(n_layers))
        if isinstance(config.layers, int):
            layers = layers[-config.layers :]
        edited = list(layers)
        plan = EditPlan.transport(layers, found.theta[edited], found.tau[edited], 1.0, config.effective_steps)
        return [Candidate("transport", "transport", {"layers": edited}, (plan,))]
