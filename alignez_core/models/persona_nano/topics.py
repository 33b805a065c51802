"""Topics and questions of persona-nano, read from `topics.toml`, and their split.

A query is a question template with one topic. A fixed seed splits all combinations into three disjoint parts: training
queries, the query bank (fitted on, never trained on) and held-out queries (for measurement only).
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_DATA = tomllib.loads(Path(__file__).with_name("topics.toml").read_text(encoding="utf-8"))

#: Topic → the thing that it needs.
TOPICS: dict[str, str] = _DATA["topics"]
#: No query of these templates is in the training split or in the bank.
HELD_OUT_TEMPLATES: tuple[str, ...] = tuple(_DATA["held_out_templates"])
QUERY_TEMPLATES: tuple[str, ...] = (*_DATA["query_templates"], *HELD_OUT_TEMPLATES)

BANK_SIZE = 150
_HELD_OUT_COMBINATIONS = 150
_SPLIT_SEED = 20_240_603


@dataclass(frozen=True)
class QuerySplit:
    """Three disjoint tuples of (query text, topic)."""

    train: tuple[tuple[str, str], ...]
    bank: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]


@lru_cache(maxsize=1)
def query_split() -> QuerySplit:
    """The split of all queries; equal in every process."""
    rng = random.Random(_SPLIT_SEED)
    seen = [(t.format(t=topic), topic) for t in QUERY_TEMPLATES if t not in HELD_OUT_TEMPLATES for topic in TOPICS]
    unseen = [(t.format(t=topic), topic) for t in HELD_OUT_TEMPLATES for topic in TOPICS]
    rng.shuffle(seen)
    rng.shuffle(unseen)
    cut = BANK_SIZE + _HELD_OUT_COMBINATIONS
    held_out = [*seen[BANK_SIZE:cut], *unseen]
    rng.shuffle(held_out)
    extra = [(t.format(t=topic), topic) for t in _DATA["extra_training_templates"] for topic in TOPICS]
    return QuerySplit(train=(*seen[cut:], *extra), bank=tuple(seen[:BANK_SIZE]), held_out=tuple(held_out))
