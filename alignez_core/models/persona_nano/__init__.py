"""persona-nano: the small language model that ships with the project, a model organism with a checkable truth.

Nothing here imports torch. Its corpus, training and evaluation are in `research/persona_nano`; the README beside this
file has the figures.
"""

from __future__ import annotations

import json
from pathlib import Path

from alignez_core.models.persona_nano.styles import PERSONAS, NanoPersona
from alignez_core.models.persona_nano.topics import query_split

__all__ = ["MODEL_DIR", "PERSONAS", "NanoPersona", "held_out_queries", "query_bank"]

#: The Hugging Face directory of the shipped weights.
MODEL_DIR: Path = Path(__file__).parent / "persona-nano"


def query_bank() -> list[str]:
    """The queries that a persona is fitted on when its owner gives none; disjoint from the held-out ones."""
    bank: list[str] = json.loads((MODEL_DIR / "query_bank.json").read_text())
    return bank


def held_out_queries() -> list[str]:
    """The queries to measure on: never trained on, never in the bank."""
    return [query for query, _ in query_split().held_out]
