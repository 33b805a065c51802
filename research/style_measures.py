"""Measures of style that know nothing of a model: sentiment (VADER), word lists, length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def style_score(persona: dict[str, Any], answer: str) -> float:
    """Score of one answer by the measure of a persona of `tests/personas`; more is better.

    "words": 1 if any listed word occurs, else 0. "sentiment": VADER's compound, −1 to 1. "brevity": −words ÷ 50.
    """
    measure = persona["measure"]
    if measure == "words":
        return float(bool(_pattern(tuple(persona["words"])).search(answer)))
    if measure == "sentiment":
        return float(_vader().polarity_scores(answer)["compound"])
    if measure == "brevity":
        return -len(answer.split()) / 50
    raise ValueError(f"persona {persona['name']}: unknown measure {measure!r}")


def mean_style(persona: dict[str, Any], answers: Sequence[str]) -> float:
    """The mean of `style_score` over answers."""
    return sum(style_score(persona, answer) for answer in answers) / max(len(answers), 1)


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(re.escape(word) for word in words) + r")\b", re.IGNORECASE)


@lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
