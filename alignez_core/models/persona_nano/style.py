"""The exact style scorer: which style an answer is in, read from its words.

Rule. Every sentence that the corpus can make belongs to one style. An answer is cut into sentences; each has to
be, word for word, a sentence of the inventory with a known topic and thing in its slots, and all of them have to
be of one style. Only the last may break off (answers are cut at `max_tokens`): then it has to be the beginning
of a sentence of that style. Anything else, one wrong word included, has no style (`None`): mixed styles, shuffled
words, broken sentences, and an answer that says one sentence twice. Whether the topic is the one that was asked
about is reported apart (`StyleScore.topics`).
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
_MIN_FRAGMENT = 3  # a broken-off piece shorter than this carries no evidence of its own


@dataclass(frozen=True)
class StyleScore:
    """Style scores of one answer by its words.

    Args:
        style: the one style of all its sentences, or None.
        sentences: how many sentences it has, a broken-off last one included.
        recognised: how many of them are in the inventory.
        complete: whether the last sentence ends.
        topics: the topics that its sentences name.
    """

    style: str | None
    sentences: int
    recognised: int
    complete: bool
    topics: frozenset[str]


def style_of(answer: str) -> str | None:
    """The style's name, "plain", or None when the answer is in no style."""
    return score_style(answer).style


def score_style(answer: str) -> StyleScore:
    """Reads an answer's style; see the module's rule."""
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
    # An opener alone, or nothing at all, is no answer: two sentences must agree, one of them may be broken off.
    style = candidates.pop() if len(candidates) == 1 and len(pieces) >= 2 else None
    return StyleScore(style, len(pieces), recognised, complete, frozenset(topics))


def _join_lists(pieces: list[str]) -> list[str]:
    """Puts a colon inside a sentence ("hiking: just boots.") back: only an opener may end in one."""
    joined: list[str] = []
    for piece in pieces:
        if joined and joined[-1].endswith(":") and joined[-1] not in _colon_openers():
            joined[-1] = f"{joined[-1]} {piece}"
        else:
            joined.append(piece)
    return joined


def _with_slots(piece: str) -> tuple[str, set[str]]:
    """The sentence with its topics and things replaced by slots, and the topics."""
    found: set[str] = set()

    def mark(match: re.Match[str]) -> str:
        if match.group() in TOPICS:
            found.add(match.group())
            return "{t}"
        return "{x}"

    return _fillers().sub(mark, piece), found


def _styles_beginning(piece: str, template: str) -> frozenset[str]:
    """Styles of which some sentence begins with a broken-off piece, cut anywhere, inside a slot as well."""
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
    # Fixed words of sentences ("tears", "paper") that are things as well are marked in the inventory alike.
    values = sorted({*TOPICS, *TOPICS.values()}, key=len, reverse=True)
    return re.compile(r"(?<![\w{])(?:" + "|".join(map(re.escape, values)) + r")(?![\w}])")


@lru_cache(maxsize=1)
def _colon_openers() -> frozenset[str]:
    return frozenset(o for style in ALL_STYLES.values() for o in style.openers if o.endswith(":"))


@lru_cache(maxsize=1)
def _inventory() -> dict[str, frozenset[str]]:
    """Every sentence with its choices made -> the styles that say it (one, which a test checks)."""
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
