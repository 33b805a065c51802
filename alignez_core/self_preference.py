"""Contrasting data made by the model itself: invented queries, characteristics, and the seeds of all texts.

Each row derives its seed from the fit's seed, the sample's index and the kind of text. Therefore the data do not depend
on batching, a resumed fit makes the same texts as an uninterrupted one, and the arms of a comparison share their seeds.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence

from alignez_core.engines.base import Engine, GenerationRequest

_EXAMPLES = 5
_QUERY_CHARS = (8, 300)
_QUERY_TOKENS = 40


def invent_queries(engine: Engine, queries: Sequence[str], count: int, seed: int) -> tuple[list[str], int]:
    """At most `count` queries that the model invents after examples of the given ones, and the tokens generated.

    The model writes 2 · `count` candidates; malformed and repeated ones are dropped.
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
        # A replacement character stands for a character that the model did not finish.
        fits = _QUERY_CHARS[0] <= len(text) <= _QUERY_CHARS[1] and "\ufffd" not in text
        if fits and completion.finish_reason == "stop" and text.casefold() not in known:
            known.add(text.casefold())
            invented.append(text)
    return invented[:count], sum(len(completion.token_ids) for completion in completions)


def given_characteristics(answer: str) -> str:
    """Characteristics text of one side of a ground-truth pair: the answer itself as an example.

    Source: ours. The paper reads given pairs as `query + response` (`representation="response_last"`), without
    characteristics.
    """
    return f"read like this: {one_line(answer)}"


def given_answer(engine: Engine, answer: str) -> str:
    """A ground-truth answer as the model would generate it: with a leading space in plain formats."""
    return f" {answer.strip()}" if engine.prompt_format.name == "plain" else answer.strip()


def row_seed(seed: int, index: int, kind: str) -> int:
    """Seed of one generated text."""
    digest = hashlib.sha256(f"{seed}/{index}/{kind}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def clean(text: str) -> str:
    """The text without NUL, which the database cannot store: a resumed fit must see the same texts."""
    return text.replace("\x00", "\ufffd")


def one_line(text: str) -> str:
    """The text with each run of white space as one space."""
    return clean(re.sub(r"\s+", " ", text).strip())
