"""Compares every answer of the soak with its solo run. Only a tie between two tokens excuses a difference.

An answer is identified by the content of its profile version (sha256), the strength and the question; its reference is
the same request on an idle service. float32 sums depend on the batch's shape in the last bits, so when two tokens are
almost equally likely, both are correct. A difference counts as a tie only if a solo run shows it: for greedy requests
the log-probabilities of the two best tokens differ by less than `TIE_NATS`; for sampled ones a temperature changed by
`TIE_TEMPERATURE` makes the solo run choose the other token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

TIE_NATS = 1e-3
TIE_TEMPERATURE = 3e-4


@dataclass(frozen=True)
class Identity:
    """Identity of an answer. `sha256` and `tenant` are None for the base model, which all tenants share."""

    tenant: int | None
    sha256: str | None
    strength: float | None
    question: int


@dataclass(frozen=True)
class Answer:
    """A text and its finish reason, None for the part that a client received before it disconnected."""

    text: str
    finish: str | None

    def fits(self, reference: Answer) -> bool:
        """True if this is the reference or a prefix of it."""
        return reference.text.startswith(self.text) if self.finish is None else self == reference


@dataclass
class Wrong:
    """Equal answers that differ from their solo run; `tie` is the excuse, if there is one."""

    identity: Identity
    expected: Answer
    got: Answer
    count: int
    tie: str | None = None

    @property
    def at(self) -> int:
        """Length of the common prefix."""
        return _common(self.expected.text, self.got.text)


class AnswerBook:
    """Answers and references by identity; a reference may come before or after its answers."""

    def __init__(self) -> None:
        self.references: dict[Identity, Answer] = {}
        self.seen: dict[Identity, Counter[Answer]] = {}

    def observe(self, identity: Identity, answer: Answer) -> None:
        """Notes one answer of the load."""
        self.seen.setdefault(identity, Counter())[answer] += 1

    def counts(self) -> tuple[int, int]:
        """Answers that have a reference, and all answers."""
        compared = sum(seen.total() for identity, seen in self.seen.items() if identity in self.references)
        return compared, sum(seen.total() for seen in self.seen.values())

    def wrong(self) -> list[Wrong]:
        """All answers that differ from their reference, the most frequent first."""
        found = [
            Wrong(identity, reference, answer, count)
            for identity, reference in self.references.items()
            for answer, count in self.seen.get(identity, Counter()).items()
            if not answer.fits(reference)
        ]
        return sorted(found, key=lambda wrong: -wrong.count)


async def explain(
    wrong: Wrong, temperature: float, ask: Callable[[Identity, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
) -> None:
    """Sets `wrong.tie` if the difference is a tie; `ask` makes a solo run with these fields changed."""
    if wrong.expected.text == wrong.got.text:
        return  # rounding cannot explain the same text with another finish reason
    for factor in (1 + TIE_TEMPERATURE, 1 - TIE_TEMPERATURE) if temperature > 0 else ():
        near = text_of(await ask(wrong.identity, {"temperature": temperature * factor}))
        if near == wrong.got.text or _common(near, wrong.got.text) > wrong.at:
            wrong.tie = f"a temperature of {temperature * factor:.6g} gives it alone"
            return
    place = 0
    for token, best, second in [] if temperature > 0 else await _best_two(wrong.identity, ask):
        place += len(token)
        if place > wrong.at:
            if best - second < TIE_NATS:
                wrong.tie = f"the two best tokens are {best - second:.1e} nats apart"
            return


def text_of(reply: Mapping[str, Any]) -> str:
    """The text of a complete reply."""
    choice = reply["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


async def _best_two(identity: Identity, ask: Any) -> list[tuple[str, float, float]]:
    """For each token of a greedy solo run, its text and the log-probabilities of the two best tokens."""
    choice = (await ask(identity, {"logprobs": 2}))["choices"][0]
    if "message" in choice:
        content = choice["logprobs"]["content"]
        return [(entry["token"], *(top["logprob"] for top in entry["top_logprobs"][:2])) for entry in content]
    tops = (sorted(top.values(), reverse=True)[:2] for top in choice["logprobs"]["top_logprobs"])
    return [(token, *top) for token, top in zip(choice["logprobs"]["tokens"], tops, strict=True)]


def _common(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
