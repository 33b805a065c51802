"""Readings: what the model holds while it is about to answer, or answers, under help, harm and plain contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from alignez_core.engines.base import Engine, Span
from alignez_core.errors import InvalidInput
from alignez_core.prompts import preference_prompt
from alignez_core.self_preference import Sample, TextPair
from alignez_core.spec.limits import Representation


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
        """The same samples at some of the layers."""
        index = [self.layers.index(layer) for layer in layers]
        return Readings(self.samples, tuple(layers), self.help[:, index].contiguous(), self.harm[:, index].contiguous())

    def rows(self, chosen: Sequence[int]) -> Readings:
        """Some of the samples, by row."""
        index = list(chosen)
        return Readings(tuple(self.samples[i] for i in index), self.layers, self.help[index], self.harm[index])


def read_sides(
    engine: Engine,
    samples: Sequence[Sample],
    characteristics: Mapping[int, TextPair],
    answers: Mapping[int, TextPair],
    representation: Representation,
) -> Readings:
    """Phi of both sides at every layer.

    Args:
        representation: "prompt": the preference prompt's last token (Algorithm 1); "response_last", "response_mean":
            the last token, or the mean over the tokens, of `query + answer` (the authors' code).
    Source: AlignEZ (arXiv 2406.03642), Algorithm 1, line 4; the two others follow the paper's published code.
    """
    form = engine.prompt_format
    if representation == "prompt":
        prompts = [
            preference_prompt(form, s.query, getattr(characteristics[s.index], side), s.persona, side)
            for side in ("help", "harm")
            for s in samples
        ]
        both = engine.represent(prompts)
    else:
        texts: list[list[int]] = []
        spans: list[Span] = []
        for side in ("help", "harm"):
            for s in samples:
                prompt = form.wrap(s.query)
                start = len(engine.tokenize(prompt))
                # Tokenised together, as the model would see it; the boundary is the prompt's own length.
                whole = engine.tokenize(prompt + getattr(answers[s.index], side))
                texts.append(whole)
                end = len(whole)
                spans.append(Span(end - 1 if representation == "response_last" else min(start, end - 1), end))
        both = engine.represent(texts, spans)
    layers = tuple(range(both.shape[1]))
    return Readings(tuple(s.index for s in samples), layers, both[: len(samples)], both[len(samples) :])
