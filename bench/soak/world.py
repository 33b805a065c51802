"""The state of a soak: tenants, their current profiles, and the questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignez_core.models import persona_nano

_LENGTHS = (16, 24, 40, 64, 64, 96, 128, 256)
_SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0}, {"temperature": 0.8}, {"temperature": 0},
    {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0}, {"temperature": 0.7, "top_k": 40},
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A request without `model` and `stream`; `path` follows `/v1` or `/v1/users/…`."""

    number: int
    path: str
    body: Mapping[str, Any]


def make_questions(count: int) -> list[Question]:
    """Chats and text completions, greedy and sampled, with prompts and answers of different lengths."""
    rng = random.Random(0)
    queries = persona_nano.held_out_queries()
    made = []
    for i in range(count):
        asked = [queries[(i * 7 + j) % len(queries)] for j in range(rng.choice((1, 1, 1, 2, 4)))]
        body: dict[str, Any] = {"max_tokens": rng.choice(_LENGTHS), "seed": 1000 + i, "ignore_eos": i % 2 == 0}
        body |= _SAMPLING[i % len(_SAMPLING)]
        if i % 3 == 2:
            body["prompt"] = f"<|user|>{asked[-1]}<|end|><|assistant|>" if i % 2 else " ".join(asked)
            made.append(Question(i, "/completions", body))
            continue
        body["messages"] = [{"role": "user", "content": asked[0]}]
        for query in asked[1:]:
            body["messages"] += [{"role": "assistant", "content": "Sure."}, {"role": "user", "content": query}]
        made.append(Question(i, "/chat/completions", body))
    return made


@dataclass
class SoakProfile:
    """One live profile: its ready versions (number → sha256), aliases and end users. Lasting ones are never changed."""

    tenant: int
    name: str
    id: str = ""
    versions: dict[int, str] = field(default_factory=dict)
    user: str = ""
    lasting: bool = False
    chat_only: bool = False  #: a version puts a text before conversations, which text completions are refused for


@dataclass(frozen=True)
class Asked:
    """One request as it is sent."""

    tenant: int
    question: Question
    path: str
    body: Mapping[str, Any]
    profile: SoakProfile | None = None  #: None: the base model
    version: int | None = None  #: the pinned number
    strength: float | None = None  #: the dose; None: the version's own
    leave_after: int | None = None  #: bytes after which the client hangs up

    def may_be_refused(self, status: int) -> bool:
        """True for a refusal that the churn explains: the profile was deleted, or is not ready yet."""
        return status in (404, 409) and self.profile is not None and not self.profile.lasting


class World:
    """The tenants' keys, the live profiles, and the random generator."""

    def __init__(self, keys: Sequence[str], questions: Sequence[Question]) -> None:
        self.keys = list(keys)
        self.questions = list(questions)
        self.rng = random.Random(0)
        self.profiles: list[SoakProfile] = []

    def next_request(self, tenant: int) -> Asked:
        """A request of this tenant: half of them for lasting profiles, the rest for churned ones and the base model."""
        kind = self.rng.choice(("lasting", "lasting", "churned", "base"))
        mine = [p for p in self.profiles if p.tenant == tenant and p.lasting == (kind == "lasting")]
        if kind == "base" or not mine:
            return self._send(Asked(tenant, self.rng.choice(self.questions), "/v1", {"model": "base"}))
        return self._of(self.rng.choice(mine))

    def _of(self, profile: SoakProfile) -> Asked:
        """A request that names the profile in one of the supported ways."""
        number = self.rng.choice(list(profile.versions))
        # Few questions for each churned profile, which bounds the number of solo runs.
        questions = self.questions if profile.lasting else self.questions[:3]
        if profile.chat_only:
            questions = [question for question in questions if question.path == "/chat/completions"]
        question = self.rng.choice(questions)
        named, by_id = f"base@{profile.name}", {"name": profile.id, "version": number}
        ways: tuple[tuple[str, dict[str, Any], int | None], ...] = (
            ("", {"model": f"{named}#{number}"}, number),
            ("", {"model": "base", "profile": by_id}, number),
            ("", {"model": "base", "profile": {**by_id, "strength": 0.5}}, number),
            ("", {"model": named}, None),
            ("", {"model": f"{named}:canary"}, None),
            ("", {"model": "base", "user": profile.user}, None),
            (f"/users/{profile.user}", {"model": "base"}, None),
        )
        path, body, version = self.rng.choice(ways)
        strength = body.get("profile", {}).get("strength")
        return self._send(Asked(profile.tenant, question, f"/v1{path}", body, profile, version, strength))

    def _send(self, asked: Asked) -> Asked:
        """Completes path and body, and has some clients disconnect early."""
        streamed = self.rng.random() < 0.7
        # A stream names its version at its end, so clients may leave only streams of a version known beforehand.
        known = asked.profile is None or (asked.profile.lasting and asked.version is not None)
        leave_after = self.rng.randint(1, 6000) if streamed and known and self.rng.random() < 0.15 else None
        body = {**asked.question.body, **asked.body, "stream": streamed}
        return replace(asked, path=asked.path + asked.question.path, body=body, leave_after=leave_after)
