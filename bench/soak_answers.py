"""Every answer of the soak against its solo run: what was answered, what had to be, and which difference is a tie.

An answer is identified by what it was made from: the profile version's content (sha256), the dose and the question
(prompt, length, sampling, seed). Its reference is the same request asked alone on an idle service. Within one
identity every answer must be the same text with the same end, and the text of a client that hung up a beginning of it.

Floating point is the one excuse: float32 sums differ in the last bits with the batch's shape, so where two tokens are
as good as equally likely (or a sampled number falls on the border between two), either is right. A difference counts
as a tie only when asking alone shows it: for greedy requests the two tokens' log-probabilities differ by less than
`TIE_NATS`; for sampled ones a temperature changed by `TIE_TEMPERATURE` makes the solo run take the other token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TIE_NATS = 1e-3
TIE_TEMPERATURE = 3e-4


@dataclass(frozen=True)
class Identity:
    """What an answer is made from. `sha256` and `tenant` are None for the bare base model, which all tenants share."""

    tenant: int | None
    sha256: str | None
    strength: float | None
    question: int


@dataclass(frozen=True)
class Answer:
    """A text and how it ended; `finish` None is the beginning that a client saw before it hung up."""

    text: str
    finish: str | None

    def fits(self, reference: Answer) -> bool:
        """Whether it is the reference, or a beginning of it."""
        return reference.text.startswith(self.text) if self.finish is None else self == reference


@dataclass
class Wrong:
    """Answers that are not their solo run's; `tie` tells why that is no fault, if it is none."""

    identity: Identity
    expected: Answer
    got: Answer
    count: int
    example: Mapping[str, Any]
    tie: str | None = None

    @property
    def at(self) -> int:
        """Characters that both have in common."""
        return common(self.expected.text, self.got.text)


@dataclass
class _Seen:
    answers: Counter[Answer] = field(default_factory=Counter)
    examples: dict[Answer, Mapping[str, Any]] = field(default_factory=dict)


class AnswerBook:
    """What was answered and what should have been. References may come before or after the answers."""

    def __init__(self) -> None:
        self._seen: dict[Identity, _Seen] = {}
        self._references: dict[Identity, Answer] = {}
        self._known_wrong = 0

    def observe(self, identity: Identity, answer: Answer, example: Mapping[str, Any]) -> None:
        """Notes one answer of the load; `example` says how it came, for the report."""
        seen = self._seen.setdefault(identity, _Seen())
        seen.answers[answer] += 1
        seen.examples.setdefault(answer, example)
        reference = self._references.get(identity)
        if reference is not None and not answer.fits(reference):
            self._known_wrong += 1

    def refer(self, identity: Identity, answer: Answer) -> None:
        """Notes what the request gives alone."""
        self._references[identity] = answer

    @property
    def known_wrong(self) -> int:
        """Wrong answers whose reference was there before them; cheap, for the progress line."""
        return self._known_wrong

    @property
    def total(self) -> int:
        """Answers noted, beginnings too."""
        return sum(seen.answers.total() for seen in self._seen.values())

    @property
    def compared(self) -> int:
        """Answers that have a reference."""
        return sum(seen.answers.total() for identity, seen in self._seen.items() if identity in self._references)

    def without_reference(self) -> list[Identity]:
        """Identities that were answered and not asked alone yet, the most frequent first."""
        missing = [identity for identity in self._seen if identity not in self._references]
        return sorted(missing, key=lambda identity: -self._seen[identity].answers.total())

    def references(self) -> dict[Identity, Answer]:
        """All solo answers."""
        return dict(self._references)

    def wrong(self) -> list[Wrong]:
        """Every kind of answer that is not its reference, the most frequent first."""
        found = [
            Wrong(identity, reference, answer, count, seen.examples[answer])
            for identity, seen in self._seen.items()
            if (reference := self._references.get(identity)) is not None
            for answer, count in seen.answers.items()
            if not answer.fits(reference)
        ]
        return sorted(found, key=lambda wrong: -wrong.count)

    def disagreements(self) -> int:
        """Identities without a reference whose whole answers are not all the same: some of them are wrong."""
        return sum(
            len({answer for answer in self._seen[identity].answers if answer.finish is not None}) > 1
            for identity in self.without_reference()
        )


#: Asks an identity's question alone, with these fields of the body changed; the reply's JSON.
AskAlone = Callable[[Identity, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


async def explain(wrong: Wrong, temperature: float, ask: AskAlone) -> None:
    """Sets `wrong.tie` if the difference is a tie; see the module."""
    if wrong.at == len(wrong.got.text) == len(wrong.expected.text):
        return  # the same text with another end is no matter of floating point
    if temperature > 0:
        for factor in (1 + TIE_TEMPERATURE, 1 - TIE_TEMPERATURE):
            near = text_of(await ask(wrong.identity, {"temperature": temperature * factor}))
            if _shows(near, wrong):
                wrong.tie = f"a temperature of {temperature * factor:.6g} gives it alone"
                return
        return
    alternatives = tokens_of(await ask(wrong.identity, {"logprobs": 2}))
    place = 0
    for token, ranked in alternatives:
        if place + len(token) > wrong.at:
            if len(ranked) > 1 and abs(ranked[0] - ranked[1]) < TIE_NATS:
                wrong.tie = f"the two best tokens are {abs(ranked[0] - ranked[1]):.1e} nats apart"
            return
        place += len(token)


def common(one: str, other: str) -> int:
    """Length of the beginning that two texts share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _shows(near: str, wrong: Wrong) -> bool:
    """Whether a solo run goes the wrong answer's way beyond the place where that left its reference."""
    return near == wrong.got.text or common(near, wrong.got.text) > wrong.at


def text_of(reply: Mapping[str, Any]) -> str:
    """The text of a whole reply's choice."""
    choice = reply["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def tokens_of(reply: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """Per token of a whole reply its text and the alternatives' log-probabilities, best first."""
    logprobs = reply["choices"][0]["logprobs"]
    if "content" in logprobs:
        return [(entry["token"], [top["logprob"] for top in entry["top_logprobs"]]) for entry in logprobs["content"]]
    tops = (sorted(top.values(), reverse=True) for top in logprobs["top_logprobs"])
    return list(zip(logprobs["tokens"], tops, strict=True))
