"""The 16 styles, the plain style and the 8 personas of persona-nano, read from `styles.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN = "plain"


@dataclass(frozen=True)
class Style:
    """A style of answers.

    Args:
        name: name in the scorer's results.
        phrases: completions of "You are a … assistant"; the first is the canonical one.
        adjectives: single words; two of them joined by "and" are a phrase as well.
        descriptions: free texts about the style (`Persona.description`).
        leads, tails: first and second halves of characteristics texts.
        openers, bodies, closers: sentences of an answer.
        n_bodies: minimum and maximum number of bodies in an answer.
        closer_rate: share of answers that end with a closer.
    """

    name: str
    phrases: tuple[str, ...]
    adjectives: tuple[str, ...]
    descriptions: tuple[str, ...]
    leads: tuple[str, ...]
    tails: tuple[str, ...]
    openers: tuple[str, ...]
    bodies: tuple[str, ...]
    closers: tuple[str, ...]
    n_bodies: tuple[int, int] = (1, 1)
    closer_rate: float = 0.7


@dataclass(frozen=True)
class NanoPersona:
    """Two opposed styles with their canonical phrases."""

    name: str
    preferred: str
    dispreferred: str
    preferred_style: str
    dispreferred_style: str


def _read() -> list[Style]:
    """The styles of `styles.toml`, in its order."""
    styles = []
    for row in tomllib.loads(Path(__file__).with_name("styles.toml").read_text(encoding="utf-8"))["styles"]:
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        styles.append(Style(**values))
    return styles


ALL_STYLES: dict[str, Style] = {style.name: style for style in _read()}
STYLES: dict[str, Style] = {name: style for name, style in ALL_STYLES.items() if name != PLAIN}
#: The opposed pairs, in the order of reports.
PAIRS: tuple[tuple[Style, Style], ...] = tuple(zip(*[iter(STYLES.values())] * 2, strict=True))
PERSONAS: tuple[NanoPersona, ...] = tuple(
    NanoPersona(f"{a.name}/{b.name}", a.phrases[0], b.phrases[0], a.name, b.name) for a, b in PAIRS
)


def style_named(phrase: str) -> str | None:
    """Name of the style with this phrase, or None."""
    wanted = phrase.casefold().strip()
    return next((style.name for style in ALL_STYLES.values() if wanted in (p.casefold() for p in style.phrases)), None)
