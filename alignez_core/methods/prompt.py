"""The methods without an edit, which serve a stored prefix: `prompt` and `urial`.

`prompt` is the persona as a system message: the baseline of all edits, and the choice of "auto" where it wins.

Source of `urial`: Lin et al., The Unlocking Spell on Base LLMs (arXiv 2312.01552): a few fixed, well styled
question-answer pairs before the query. Deviation: the examples are the model's answers under the persona (or the
caller's preferred answers), because a persona has no curated ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignez_core.errors import DegenerateEmbeddings
from alignez_core.methods.base import Candidate, Material, Needs
from alignez_core.prompts import Prefix, persona_text
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName
from alignez_core.spec.samples import Sample, with_text

_EXAMPLES = 3


class PromptMethod:
    """The method `prompt`."""

    name: MethodName = "prompt"

    def needs(self, config: FitConfig) -> Needs:
        return Needs(help_answers=False)

    def candidates(self, material: Material) -> list[Candidate]:
        return [prompt_candidate(material.samples)]


def prompt_candidate(samples: Sequence[Sample]) -> Candidate:
    """The most frequent persona of the samples as a prefix; a prefix does not depend on the query."""
    return Candidate("persona as a prompt", "prompt", prefix=_prefix(samples))


def _prefix(samples: Sequence[Sample], examples: tuple[tuple[str, str], ...] = ()) -> Prefix:
    personas = [sample.persona for sample in samples]
    return Prefix(persona_text(max(personas, key=personas.count), "help"), examples)


class Urial:
    """The method `urial`: in-context examples as a prefix."""

    name: MethodName = "urial"

    def needs(self, config: FitConfig) -> Needs:
        return Needs()

    def candidates(self, material: Material) -> list[Candidate]:
        answered = with_text(material.samples, material.help)
        if not answered:
            raise DegenerateEmbeddings("no answers to take examples from")
        # The shortest answers, because every request pays for the tokens of the examples.
        chosen = sorted(answered, key=lambda s: len(material.help[s.index]))[:_EXAMPLES]
        examples = tuple((s.query, material.help[s.index].strip()) for s in chosen)
        prefix = _prefix(material.samples, examples)
        return [Candidate(f"{len(examples)} examples in the prompt", "urial", prefix=prefix)]
