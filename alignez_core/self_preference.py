"""The model's own contrasting data: queries it invents, characteristics it names, answers of both sides.

Every row's seed derives from the fit's seed, the sample's index and the kind of text. So the data do not depend on how
rows are batched, a resumed fit continues exactly as an uninterrupted one, and the arms of a comparison share their
seeds.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.spec.samples import Sample

__all__ = ["Sample", "TextPair", "clean", "given_characteristics", "invent_queries", "one_line", "row_seed"]

_EXAMPLES = 5
_QUERY_CHARS = (8, 300)
_QUERY_TOKENS = 40


@dataclass(frozen=True)
class TextPair:
    """One text per side. Answers keep the white space that they begin with: it is part of the model's tokens."""

    help: str
    harm: str


def invent_queries(engine: Engine, queries: Sequence[str], count: int, seed: int) -> tuple[list[str], int]:
    """Up to `count` new queries in the manner of the given ones, written by the model itself, and the tokens it made.

    Twice as many are drawn as asked for; malformed ones and repetitions are dropped, so fewer may come back.
    """
    known = {q.casefold() for q in queries}
    requests = []
    for attempt in range(2 * count):
        seed_of_row = row_seed(seed, attempt, "query")
        shown = random.Random(seed_of_row).sample(list(queries), min(_EXAMPLES, len(queries)))
        prompt = "Questions:\n" + "".join(f"- {text}\n" for text in shown) + "-"
        requests.append(
            GenerationRequest(prompt, max_tokens=_QUERY_TOKENS, temperature=0.9, seed=seed_of_row, stop=("\n",))
        )
    invented: list[str] = []
    completions = engine.generate(requests)
    for completion in completions:
        text = one_line(completion.text)
        # A replacement character is half of one that the model did not finish.
        fits = _QUERY_CHARS[0] <= len(text) <= _QUERY_CHARS[1] and "\ufffd" not in text
        if fits and completion.finish_reason == "stop" and text.casefold() not in known:
            known.add(text.casefold())
            invented.append(text)
    return invented[:count], sum(len(completion.token_ids) for completion in completions)


def given_characteristics(answers: tuple[str, str]) -> TextPair:
    """A ground-truth pair's stand-in for characteristics: the answers themselves, as examples.

    So that a given pair, too, has a prompt at whose end the model is about to answer in that manner. Ours; the paper
    reads given pairs as `query + response` (`representation="response_last"`), which needs no characteristics.
    """
    help_, harm = (f"read like this: {one_line(answer)}" for answer in answers)
    return TextPair(help_, harm)


def given_answer(engine: Engine, answer: str) -> str:
    """A ground-truth answer as the model would have written it: after a plain cue, with a space before."""
    return f" {answer.strip()}" if engine.prompt_format.name == "plain" else answer.strip()


def row_seed(seed: int, index: int, kind: str) -> int:
    """The seed of one generated text."""
    digest = hashlib.sha256(f"{seed}/{index}/{kind}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def clean(text: str) -> str:
    """Without NUL, which no text store keeps: a fit resumed from stored texts must go on with the very same ones."""
    return text.replace("\x00", "\ufffd")


def one_line(text: str) -> str:
    """White space runs as one space each."""
    return clean(re.sub(r"\s+", " ", text).strip())
