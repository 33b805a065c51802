"""`transport`: an edit that sets the component along help − plain to the persona's mean, at the first position only.

A method for comparison: it works on persona-nano and has no effect on real models (docs/effect.md).
"""

from __future__ import annotations

from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.methods.base import Candidate, Material, Needs
from alignez_core.methods.directions import top_directions
from alignez_core.prompts import persona_prompt
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName


class TransportMethod:
    """The method `transport`."""

    name: MethodName = "transport"

    def needs(self, config: FitConfig) -> Needs:
        return Needs(help_answers=False)

    def candidates(self, material: Material) -> list[Candidate]:
        engine, form, config = material.engine, material.engine.prompt_format, material.config
        prompts = [persona_prompt(form, s.query, s.persona, "help") for s in material.samples]
        prompts += [form.wrap(s.query) for s in material.samples]
        rows = engine.represent(prompts)
        count = len(material.samples)
        theta, tau = fit_transport(rows[:count], rows[count:])
        n_layers = engine.info.n_layers
        layers = config.layers if isinstance(config.layers, tuple) else tuple(range(n_layers))
        if isinstance(config.layers, int):
            layers = layers[-config.layers :]
        edited = list(layers)
        plan = EditPlan.transport(layers, theta[edited], tau[edited], 1.0, config.effective_steps)
        return [Candidate("transport", "transport", {"layers": edited}, (plan,))]


def fit_transport(help: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
    """The direction from the plain to the persona's prompt, and the persona's mean component along it, per layer.

    Args:
        help, plain: (N, L, D) representations of the same queries with and without the persona.
    Returns: theta (L, D), top right singular vector of help − plain; tau (L,), mean of ⟨help, theta⟩.
    Raises: DegenerateEmbeddings: the persona changes nothing at some layer.
    Source: ours (design, section 3.4).
    """
    theta, _ = top_directions((help - plain).transpose(0, 1))
    return theta, (help.to(theta.dtype).mean(0) * theta).sum(1)
