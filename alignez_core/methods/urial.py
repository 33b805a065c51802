"""`urial`: in-context examples as a prefix, no edit.

Source: Lin et al., The Unlocking Spell on Base LLMs (arXiv 2312.01552): a few fixed, well styled question-answer pairs
before the query. Deviation: the examples are the model's own answers under the persona (or the caller's preferred
answers), because a persona has no curated ones.
"""

from __future__ import annotations

from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.base import Candidate, Material, Needs
from alignez_core.methods.prompt import prompt_candidate
from alignez_core.prompts import Prefix
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName

EXAMPLES = 3


class Urial:
    """The method behind `urial`."""

    name: MethodName = "urial"

    def needs(self, config: FitConfig) -> Needs:
        return Needs()

    def candidates(self, material: Material) -> list[Candidate]:
        answered = [s for s in material.samples if material.help.get(s.index, "").strip()]
        if not answered:
            raise DegenerateEmbeddings("no answers to take examples from")
        # The shortest ones: an example costs its tokens at every request.
        chosen = sorted(answered, key=lambda s: len(material.help[s.index]))[:EXAMPLES]
        examples = tuple((s.query, material.help[s.index].strip()) for s in chosen)
        persona = prompt_candidate(material.samples).prefix
        prefix = Prefix(persona.system if persona else None, examples)
        return [Candidate(f"{len(examples)} examples in the prompt", "urial", prefix=prefix)]
