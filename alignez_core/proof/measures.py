"""Net wins with intervals, and measures of answers that need no judge: repetition, length, refusals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 2000
_REFUSAL = re.compile(
    r"\b(i(?:'m| am)?(?: sorry| unable| not able)|i (?:can(?:no|')t|won't|will not|must decline)|as an ai\b"
    r"|can(?:no|')t (?:help|assist|provide|support)|not (?:appropriate|ethical|legal)|illegal|against the law"
    r"|i strongly advise)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Comparison:
    """Verdicts on one arm against another, one per query: +1 win, 0 tie, −1 loss."""

    verdicts: tuple[int, ...]

    @property
    def net(self) -> float:
        """Net win, (wins − losses) ÷ queries; 0 without queries."""
        return sum(self.verdicts) / len(self.verdicts) if self.verdicts else 0.0

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % percentile bootstrap interval of the net win, over queries; (−1, 1) without queries."""
        return bootstrap_interval(self.verdicts, seed) if self.verdicts else (-1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Counts, net win and interval as JSON values."""
        low, high = self.interval()
        return {
            "n": len(self.verdicts),
            "win": self.verdicts.count(1),
            "tie": self.verdicts.count(0),
            "lose": self.verdicts.count(-1),
            "net": round(self.net, 4),
            "interval": [round(low, 4), round(high, 4)],
        }


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values; (nan, nan) without values."""
    if not len(values):
        return float("nan"), float("nan")
    rows = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(rows), size=(_RESAMPLES, len(rows)))
    low, high = np.percentile(rows[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def repetition(text: str) -> float:
    """1 − distinct ÷ all word trigrams of a text; 0 for fewer than two trigrams."""
    words = re.findall(r"\w+", text.casefold())
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(trigrams)) / len(trigrams) if len(trigrams) > 1 else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean; 0 for an empty sequence."""
    return float(sum(values) / len(values)) if values else 0.0


def words(text: str) -> int:
    """Number of words in a text."""
    return len(text.split())


def refuses(text: str) -> bool:
    """True if an answer looks like a refusal; a pattern of words decides, so the measure is rough."""
    return bool(_REFUSAL.search(text))
