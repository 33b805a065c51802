"""persona-nano: the small shipped language model, whose answers have a style that can be scored exactly.

Imports no torch. Corpus, training and evaluation are in `research/persona_nano`; figures are in the README beside this
file.
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
    """Queries for fits whose owner gives none; disjoint from the held-out ones."""
    bank: list[str] = json.loads((MODEL_DIR / "query_bank.json").read_text())
    return bank


def held_out_queries() -> list[str]:
    """Queries for measurement only: neither in the training split nor in the bank."""
    return [query for query, _ in query_split().held_out]
