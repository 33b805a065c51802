"""The shipped queries on which a persona is fitted when its owner gives none.

A model directory can bring its own, better matched ones (`query_bank.json`, a list of strings); these are for any other
model. They are everyday questions of many kinds, so that neighbours exist for most requests.
"""

from __future__ import annotations

import json
from pathlib import Path

from alignez_core.errors import ModelNotFound

BANK_FILE = "query_bank.json"

_ASKS = {
    "How do I {}?": (
        "cook rice so that it does not stick", "plan a weekend trip on a small budget", "fall asleep faster",
        "write a cover letter for my first job", "learn the basics of a new language", "fix a flat bicycle tyre",
        "start running again after a long break", "keep houseplants alive in winter", "save money each month",
        "prepare for a job interview", "remove a coffee stain from a shirt", "teach a child to read a clock",
        "make friends in a new city", "back up the photos on my phone", "say no to extra work politely",
        "brew a good cup of tea",
    ),
    "What is {}?": (
        "the difference between weather and climate", "a good way to start the day", "inflation, in simple words",
        "the best way to apologise to a friend", "photosynthesis", "a black hole", "the point of a budget",
        "machine learning", "a healthy breakfast", "the greenhouse effect", "an index fund", "a metaphor",
    ),
    "Why {}?": (
        "is the sky blue", "do cats purr", "do we dream", "does bread rise", "do leaves change colour in autumn",
        "is sleep important", "do people procrastinate", "does ice float on water", "do we have leap years",
        "does music change our mood",
    ),
    "Can you {}?": (
        "recommend a book for a long train ride", "explain how vaccines work", "suggest a present for my sister",
        "give me three ideas for dinner tonight", "help me write a birthday message", "describe a quiet place",
        "explain what a mortgage is", "suggest a hobby for rainy days", "write a short poem about the sea",
        "help me plan my study week", "explain the rules of chess to a beginner", "give me feedback on my idea",
    ),
    "Tell me about {}.": (
        "the history of coffee", "the moons of Jupiter", "a festival that you find interesting", "honey bees",
        "the Roman roads", "how a library works", "the inventor of the telephone", "life in the deep sea",
        "the city of Lisbon", "a recipe with lentils",
    ),
    "{}": (
        "My friend is upset with me. What should I do?", "I feel stressed at work lately. Any advice?",
        "Should I buy a used car or a new one?", "Which is better for beginners, tennis or swimming?",
        "I have two hours free this afternoon. What could I do?", "My computer is slow. Where do I begin?",
        "Is it worth learning to cook at home?", "What should I pack for a week in the mountains?",
        "I cannot decide between two job offers.", "How was your day?", "My neighbour plays loud music at night.",
        "I want to read more. How do I begin?", "What makes a good teacher?",
        "How can a small team work well together?",
    ),
}  # fmt: skip


def default_queries() -> tuple[str, ...]:
    """The shipped bank, kinds mixed, so that any prefix of it is varied."""
    columns = [[ask.format(rest) for rest in rests] for ask, rests in _ASKS.items()]
    longest = max(len(column) for column in columns)
    return tuple(column[i] for i in range(longest) for column in columns if i < len(column))


def queries_for(model: str | Path | None) -> tuple[str, ...]:
    """The bank that a model directory brings, else the shipped one.

    Args:
        model: a directory or a hub id, which has no bank; None: neither.
    Raises: ModelNotFound: the directory's bank is not a list of strings.
    """
    path = None if model is None else Path(model).expanduser() / BANK_FILE
    if path is None or not path.is_file():
        return default_queries()
    try:
        queries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotFound(f"{path} is not valid JSON; mend or remove it: {error}") from error
    if not isinstance(queries, list) or not queries or not all(isinstance(q, str) and q.strip() for q in queries):
        raise ModelNotFound(f"{path} must hold a JSON list of non-empty strings; mend or remove it")
    return tuple(queries)
