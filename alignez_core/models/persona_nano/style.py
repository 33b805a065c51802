"""Exact scorer of the style of an answer.

Every sentence that the corpus can generate belongs to one style. An answer has a style if each of its sentences is,
word for word, a sentence of this style with a known topic and thing in its slots, and none occurs twice. The last
sentence may be incomplete, because `max_tokens` cuts answers; then it must be the beginning of such a sentence. All
other answers have no style (None), even with a single wrong word. `StyleScore.topics` tells the topics of an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from alignez_core.models.persona_nano.styles import ALL_STYLES
from alignez_core.models.persona_nano.topics import TOPICS

_SENTENCE = re.compile(r"[^.!?:]+[.!?:]+(?=\s|$)|[^.!?:]+$")
_SLOT = re.compile(r"\{[tx]\}")
_MIN_FRAGMENT = 3  # characters; a shorter incomplete sentence matches every style


@dataclass(frozen=True)
class StyleScore:
    """Result of `score_style`.

    Args:
        style: the style of all sentences, or None.
        sentences: number of sentences, including an incomplete last one.
        recognised: number of sentences that belong to any style.
        complete: True if the last sentence ends.
        topics: topics in the answer.
    """

    style: str | None
    sentences: int
    recognised: int
    complete: bool
    topics: frozenset[str]


def style_of(answer: str) -> str | None:
    """Name of the answer's style ("plain" included), or None."""
    return score_style(answer).style


def score_style(answer: str) -> StyleScore:
    """Style of an answer by the rule above, with counts."""
    pieces = [match.group().strip() for match in _SENTENCE.finditer(answer.strip())]
    pieces = _join_lists([piece for piece in pieces if piece])
    candidates = set(ALL_STYLES)
    topics: set[str] = set()
    seen: set[str] = set()
    recognised = 0
    complete = bool(pieces) and (pieces[-1][-1] in ".!?" or pieces[-1] in _colon_openers())
    for i, piece in enumerate(pieces):
        template, found = _with_slots(piece)
        topics |= found
        styles = _inventory().get(template, frozenset()) if template not in seen else frozenset()
        seen.add(template)
        if not styles and i == len(pieces) - 1 and not complete:
            styles = _styles_beginning(piece, template)
        recognised += bool(styles)
        candidates &= styles
    # A single sentence has no style: two must agree, of which the last may be incomplete.
    style = candidates.pop() if len(candidates) == 1 and len(pieces) >= 2 else None
    return StyleScore(style, len(pieces), recognised, complete, frozenset(topics))


def _join_lists(pieces: list[str]) -> list[str]:
    """Joins a sentence that was split at an inner colon ("hiking: just boots."); only openers end in a colon."""
    joined: list[str] = []
    for piece in pieces:
        if joined and joined[-1].endswith(":") and joined[-1] not in _colon_openers():
            joined[-1] = f"{joined[-1]} {piece}"
        else:
            joined.append(piece)
    return joined


def _with_slots(piece: str) -> tuple[str, set[str]]:
    """The sentence with slots in place of topics and things, and the topics."""
    found: set[str] = set()

    def mark(match: re.Match[str]) -> str:
        if match.group() in TOPICS:
            found.add(match.group())
            return "{t}"
        return "{x}"

    return _fillers().sub(mark, piece), found


def _styles_beginning(piece: str, template: str) -> frozenset[str]:
    """Styles with a sentence that begins with an incomplete one, which may end inside a slot."""
    if len(piece) < _MIN_FRAGMENT:
        return frozenset(ALL_STYLES)
    styles: set[str] = set()
    for sentence, names in _inventory().items():
        if names <= styles:
            continue
        if sentence.startswith(template) or any(
            template.startswith(sentence[: slot.start()])
            and any(filler.startswith(template[slot.start() :]) for filler in _slot_values(slot.group()))
            for slot in _SLOT.finditer(sentence)
        ):
            styles |= names
    return frozenset(styles)


def _slot_values(slot: str) -> tuple[str, ...]:
    return tuple(TOPICS) if slot == "{t}" else tuple(sorted(set(TOPICS.values())))


@lru_cache(maxsize=1)
def _fillers() -> re.Pattern[str]:
    # Fixed words of sentences that are also things ("tears", "paper") become slots in the inventory too.
    values = sorted({*TOPICS, *TOPICS.values()}, key=len, reverse=True)
    return re.compile(r"(?<![\w{])(?:" + "|".join(map(re.escape, values)) + r")(?![\w}])")


@lru_cache(maxsize=1)
def _colon_openers() -> frozenset[str]:
    return frozenset(o for style in ALL_STYLES.values() for o in style.openers if o.endswith(":"))


@lru_cache(maxsize=1)
def _inventory() -> dict[str, frozenset[str]]:
    """Sentence with its choices made → its styles (exactly one, which a test checks)."""
    table: dict[str, set[str]] = {}
    for style in ALL_STYLES.values():
        for template in (*style.openers, *style.bodies, *style.closers):
            choices = [part.split("|") for part in re.split(r"\[([^\]]*)\]", template)[1::2]]
            fixed = re.split(r"\[[^\]]*\]", template)
            for chosen in product(*choices):
                text = "".join(a + b for a, b in zip(fixed, (*chosen, ""), strict=True))
                for sentence in _join_lists([m.group().strip() for m in _SENTENCE.finditer(text)]):
                    marked, _ = _with_slots(sentence)
                    table.setdefault(marked, set()).add(style.name)
    return {sentence: frozenset(names) for sentence, names in table.items()}
