"""`prompt`: the persona as a stored prefix, no edit. The baseline to beat and, where it wins, what is served."""

from __future__ import annotations

from collections.abc import Sequence

from alignez_core.methods.base import Candidate, Material, Needs
from alignez_core.prompts import Prefix, persona_text
from alignez_core.self_preference import Sample
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName


class PromptMethod:
    """The method behind `prompt`."""

    name: MethodName = "prompt"

    def needs(self, config: FitConfig) -> Needs:
        return Needs(help_answers=False)

    def candidates(self, material: Material) -> list[Candidate]:
        return [prompt_candidate(material.samples)]


def prompt_candidate(samples: Sequence[Sample]) -> Candidate:
    """The persona of most samples as a prefix; a prefix does not depend on the query."""
    personas = [sample.persona for sample in samples]
    persona = max(personas, key=personas.count)
    return Candidate("persona as a prompt", "prompt", prefix=Prefix(persona_text(persona, "help")))
