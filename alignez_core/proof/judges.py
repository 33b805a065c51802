"""Judges behind one port: which of two answers to a query shows the persona better.

The default `self` compares log p(answer | help) − log p(answer | harm) per token under the model itself. Repetitive
answers have a high likelihood in every context, so the choice and the gate bound repetition separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alignez_core.engines.base import Engine, ScoreRequest
from alignez_core.prompts import ALONE, Side, Situation, persona_prompt
from alignez_core.spec.samples import Sample

#: Nats per token within which two answers tie.
_TIE = 1e-3


@dataclass(frozen=True)
class Answered:
    """An answer with its sample and situation."""

    sample: Sample
    text: str
    situation: Situation = ALONE


class Judge(Protocol):
    """Compares answers under each sample's persona."""

    #: Name that evaluations store.
    name: str

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        """One verdict per pair: +1 if the left answer shows the persona better, 0 for a tie, else −1.

        Raises: JudgeUnavailable: a verdict is missing after all attempts.
        """
        ...

    def close(self) -> None:
        """Frees the judge's resources; may be called twice."""
        ...


class Likelihoods:
    """Log-probabilities of answers under the persona and its opposite, each computed once without an edit."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, int, str, str], Tensor] = {}

    def per_token(self, answers: Sequence[Answered], side: Side) -> list[float]:
        """Mean log-probability per token (nats) of each answer under one side; −inf for an answer without tokens."""
        return [float(row.mean()) if len(row) else -math.inf for row in self._rows(answers, side)]

    def contrast(self, answers: Sequence[Answered], most: float) -> list[float]:
        """Mean over an answer's tokens of log p(token | help) − log p(token | harm), nats; 0 without tokens.

        Each difference is clipped to ±most, so that a word copied from one of the prompts does not outweigh all others.
        """
        rows = zip(self._rows(answers, "help"), self._rows(answers, "harm"), strict=True)
        return [float((a - b).clamp(-most, most).mean()) if len(a) else 0.0 for a, b in rows]

    def _rows(self, answers: Sequence[Answered], side: Side) -> list[Tensor]:
        """(T,) log-probabilities of each answer's tokens; empty for a blank answer."""
        keys = [(a.situation.name, a.sample.index, side, a.text) for a in answers]
        missing = {
            key: answer
            for key, answer in zip(keys, answers, strict=True)
            if key not in self._known and answer.text.strip()
        }
        scores = self._engine.score([self._request(answer, side) for answer in missing.values()])
        self._known.update(zip(missing, scores, strict=True))
        nothing = torch.empty(0)
        return [self._known.get(key, nothing) for key in keys]

    def _request(self, answer: Answered, side: Side) -> ScoreRequest:
        form, sample = self._engine.prompt_format, answer.sample
        prompt = persona_prompt(form, sample.query, sample.persona, side, answer.situation)
        return ScoreRequest(prompt, answer.text)


class SelfJudge:
    """Compares log p(answer | help) − log p(answer | harm) per token; the higher one wins.

    Args:
        likelihoods: of the fitted model ("self") or of another one ("model:…").
        owned: an engine that `close` closes.
    """

    def __init__(self, likelihoods: Likelihoods, name: str = "self", owned: Engine | None = None) -> None:
        self.name = name
        self._likelihoods = likelihoods
        self._owned = owned

    def scores(self, answers: Sequence[Answered]) -> list[float]:
        """One score per answer, nats per token; −inf for an answer without tokens."""
        help_ = self._likelihoods.per_token(answers, "help")
        harm = self._likelihoods.per_token(answers, "harm")
        return [a - b if a > -math.inf else -math.inf for a, b in zip(help_, harm, strict=True)]

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        return by_score(self.scores(left), self.scores(right), _TIE)

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()


class NanoJudge:
    """Scores answers with persona-nano's exact style scorer: preferred style 1, dispreferred −1, otherwise 0."""

    name = "nano"

    def scores(self, answers: Sequence[Answered]) -> list[float]:
        """One score per answer. Raises: InvalidInput: the scorer does not know the persona."""
        from alignez_core.errors import InvalidInput
        from alignez_core.models.persona_nano.style import style_of
        from alignez_core.models.persona_nano.styles import style_named

        found = []
        for answer in answers:
            persona = answer.sample.persona
            wanted, unwanted = style_named(persona.preferred), style_named(persona.dispreferred)
            if wanted is None:
                raise InvalidInput("judge", f"persona-nano has no style named {persona.preferred!r}")
            style = style_of(answer.text)
            found.append(1.0 if style == wanted else -1.0 if style is not None and style == unwanted else 0.0)
        return found

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        return by_score(self.scores(left), self.scores(right), 0.0)

    def close(self) -> None:
        """Does nothing."""


def by_score(left: Sequence[float], right: Sequence[float], tie: float) -> list[int]:
    """Verdicts on two lists of scores; differences of at most `tie` and equal infinities are ties."""
    verdicts = []
    for a, b in zip(left, right, strict=True):
        difference = 0.0 if a == b else a - b
        verdicts.append(0 if abs(difference) <= tie else 1 if difference > 0 else -1)
    return verdicts
