"""Readings: MLP outputs of the model before or during an answer, under the preferred and the dispreferred side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from alignez_core.engines.base import Engine, Span
from alignez_core.errors import InvalidInput
from alignez_core.prompts import Side, preference_prompt
from alignez_core.spec.limits import Representation
from alignez_core.spec.samples import Sample


@dataclass(frozen=True, eq=False)
class Readings:
    """MLP outputs of N samples at some layers, under the preferred and the dispreferred side.

    Args:
        samples: sample indices, in row order.
        layers: L layer indices, ascending.
        help, harm: (N, L, D) float32.
    """

    samples: tuple[int, ...]
    layers: tuple[int, ...]
    help: Tensor
    harm: Tensor

    def __post_init__(self) -> None:
        shape = (len(self.samples), len(self.layers))
        for name in ("help", "harm"):
            found = tuple(getattr(self, name).shape)
            if found[:2] != shape or len(found) != 3:
                raise InvalidInput(name, f"shape {found} is not (N, L, D) with N, L = {shape}")
        if self.help.shape != self.harm.shape:
            raise InvalidInput("harm", f"shape {tuple(self.harm.shape)} differs from help's {tuple(self.help.shape)}")

    def at(self, layers: Sequence[int]) -> Readings:
        """The readings of all samples at some layers."""
        index = [self.layers.index(layer) for layer in layers]
        return Readings(self.samples, tuple(layers), self.help[:, index].contiguous(), self.harm[:, index].contiguous())

    def rows(self, chosen: Sequence[int]) -> Readings:
        """The readings of some samples, by row index."""
        index = list(chosen)
        return Readings(tuple(self.samples[i] for i in index), self.layers, self.help[index], self.harm[index])


def read_sides(
    engine: Engine,
    samples: Sequence[Sample],
    help: Mapping[int, str],
    harm: Mapping[int, str],
    representation: Representation,
) -> Readings:
    """Phi of both sides at every layer.

    Args:
        help, harm: each side's texts by sample index: characteristics for "prompt", else answers.
        representation: "prompt": last token of the preference prompt. "response_last": last token of `query + answer`.
            "response_mean": mean over the answer's tokens.
    Source: AlignEZ (arXiv 2406.03642), Algorithm 1, line 4, for "prompt". The two others follow the paper's published
        code.
    """
    form = engine.prompt_format
    sides: tuple[tuple[Side, Mapping[int, str]], ...] = (("help", help), ("harm", harm))
    if representation == "prompt":
        both = engine.represent(
            [
                preference_prompt(form, s.query, given[s.index], s.persona, side)
                for side, given in sides
                for s in samples
            ]
        )
    else:
        texts: list[list[int]] = []
        spans: list[Span] = []
        for _, answers in sides:
            for s in samples:
                prompt = form.wrap(s.query)
                start = len(engine.tokenize(prompt))
                # One tokenisation of prompt and answer, as at inference; the answer starts at the prompt's length.
                texts.append(engine.tokenize(prompt + answers[s.index]))
                end = len(texts[-1])
                spans.append(Span(end - 1 if representation == "response_last" else min(start, end - 1), end))
        both = engine.represent(texts, spans)
    layers = tuple(range(both.shape[1]))
    return Readings(tuple(s.index for s in samples), layers, both[: len(samples)], both[len(samples) :])
