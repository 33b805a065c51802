"""Judges behind one port: they say which of two answers to a query shows the persona better.

`self` (default) needs nothing but the model: log p(answer | help) − log p(answer | harm) per token. A likelihood is
gamed by repetition, which is likely under every context; the choice and the gate bound repetition separately.
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
    """One answer with what it answers."""

    sample: Sample
    text: str
    situation: Situation = ALONE


class Judge(Protocol):
    """Compares answers; the persona is each sample's own."""

    #: Stored with the evaluation.
    name: str

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        """Per pair +1 (left shows the persona better), 0 or −1.

        Raises: JudgeUnavailable: after bounded retries; never a part of the verdicts.
        """
        ...

    def close(self) -> None:
        """Frees what the judge holds. Safe to call twice."""
        ...


class Likelihoods:
    """Log-probabilities of answers under a persona's contexts, each computed once.

    Args:
        engine: the model that reads; unedited.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, int, str, str], Tensor] = {}

    def per_token(self, answers: Sequence[Answered], side: Side) -> list[float]:
        """Mean log-probability per token (nats) of each answer under the persona or its opposite.

        An answer without tokens has −inf.
        """
        return [float(row.mean()) if len(row) else -math.inf for row in self._rows(answers, side)]

    def contrast(self, answers: Sequence[Answered], most: float) -> list[float]:
        """Mean over an answer's tokens of log p(token | help) − log p(token | harm), nats, each clipped to ±most.

        So a word that an answer copies from one of the prompts does not outweigh all others. 0 without tokens.
        """
        rows = zip(self._rows(answers, "help"), self._rows(answers, "harm"), strict=True)
        return [float((a - b).clamp(-most, most).mean()) if len(a) else 0.0 for a, b in rows]

    def _rows(self, answers: Sequence[Answered], side: Side) -> list[Tensor]:
        """(T,) log-probabilities of each answer's tokens; empty for an answer without any."""
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
    """The model's own likelihoods: a higher log p(answer | help) − log p(answer | harm) per token wins.

    Args:
        likelihoods: of the fitted model ("self") or of another one ("model:…").
        owned: an engine to close with the judge.
    """

    def __init__(self, likelihoods: Likelihoods, name: str = "self", owned: Engine | None = None) -> None:
        self.name = name
        self._likelihoods = likelihoods
        self._owned = owned

    def scores(self, answers: Sequence[Answered]) -> list[float]:
        """Nats per token; −inf for an answer without tokens."""
        help_ = self._likelihoods.per_token(answers, "help")
        harm = self._likelihoods.per_token(answers, "harm")
        return [a - b if a > -math.inf else -math.inf for a, b in zip(help_, harm, strict=True)]

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        return by_score(self.scores(left), self.scores(right), _TIE)

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()


class NanoJudge:
    """persona-nano's exact style scorer: preferred style 1, dispreferred −1, anything else 0."""

    name = "nano"

    def scores(self, answers: Sequence[Answered]) -> list[float]:
        """One per answer. Raises: InvalidInput: a persona that nano's scorer does not know."""
        from alignez_core.errors import InvalidInput
        from alignez_core.models.persona_nano.style import style_of
        from alignez_core.models.persona_nano.styles import style_named

        found = []
        for answer in answers:
            persona = answer.sample.persona
            wanted, unwanted = style_named(persona.preferred), style_named(persona.dispreferred)
            if wanted is None:
                raise InvalidInput("judge", f"nano's scorer knows no style of the name {persona.preferred!r}")
            style = style_of(answer.text)
            found.append(1.0 if style == wanted else -1.0 if style is not None and style == unwanted else 0.0)
        return found

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        return by_score(self.scores(left), self.scores(right), 0.0)

    def close(self) -> None:
        """Nothing to free."""


def by_score(left: Sequence[float], right: Sequence[float], tie: float) -> list[int]:
    """Verdicts of two lists of scores; differences of at most `tie`, and equal infinities, tie."""
    verdicts = []
    for a, b in zip(left, right, strict=True):
        difference = 0.0 if a == b else a - b
        verdicts.append(0 if abs(difference) <= tie else 1 if difference > 0 else -1)
    return verdicts
