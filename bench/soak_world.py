"""What the soak asks and whom it asks as: tenants, their profiles as they come and go, and the questions.

The directory here is the soak's own belief about the service. Answers are judged by what replies name and what the
database holds; the belief decides only what is asked next and which refusals are no surprise.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignez_core.models import persona_nano

Way = Literal["base", "pinned", "name", "alias", "user", "path", "field"]

_LENGTHS = (16, 24, 40, 64, 64, 96, 128, 256)
_SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0},
    {"temperature": 0.7, "top_k": 40},
)


@dataclass(frozen=True)
class Question:
    """One request but for model and streaming. `body` holds messages or prompt, length, sampling and seed."""

    number: int
    chat: bool
    body: Mapping[str, Any]

    @property
    def temperature(self) -> float:
        """0 is greedy."""
        return float(self.body["temperature"])

    @property
    def path(self) -> str:
        """The endpoint behind `/v1` or `/v1/users/…`."""
        return "/chat/completions" if self.chat else "/completions"


def make_questions(count: int) -> list[Question]:
    """Ragged prompts (one question to several turns) and lengths, greedy and sampled, chats and text completions."""
    rng = random.Random(0)
    queries = persona_nano.held_out_queries()
    made = []
    for i in range(count):
        chat = i % 3 != 2
        turns = rng.choice((1, 1, 1, 2, 4))
        asked = [queries[(i * 7 + j) % len(queries)] for j in range(turns)]
        messages = [{"role": "user", "content": asked[0]}]
        for query in asked[1:]:
            messages += [{"role": "assistant", "content": "Sure."}, {"role": "user", "content": query}]
        body: dict[str, Any] = {"max_tokens": rng.choice(_LENGTHS), "seed": 1000 + i, "ignore_eos": i % 2 == 0}
        body |= _SAMPLING[i % len(_SAMPLING)]
        if chat:
            body["messages"] = messages
        else:
            body["prompt"] = f"<|user|>{asked[-1]}<|end|><|assistant|>" if i % 2 else " ".join(asked)
        made.append(Question(i, chat, body))
    return made


@dataclass
class SoakProfile:
    """One profile as the soak knows it.

    Args:
        versions: number → sha256 of those that are ready and not archived.
        settled: False from the moment something about it is being deleted or is not fitted yet: until then, and for
            requests that were under way, a 404 or 409 is no surprise.
    """

    tenant: int
    name: str
    id: str = ""
    versions: dict[int, str] = field(default_factory=dict)
    aliases: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    lasting: bool = False
    settled: bool = False
    epoch: int = 0

    def unsettle(self) -> None:
        """Something named here is about to go."""
        self.settled = False
        self.epoch += 1


@dataclass(frozen=True)
class Asked:
    """One request as it is sent.

    Args:
        path, body: what goes out. leave_after: bytes after which the client hangs up.
        profile: whose behaviour is asked for, None for the base model; epoch: of it, when the request was made.
        version: the pinned number; strength: the dose, None for the version's own.
    """

    tenant: int
    way: Way
    question: Question
    path: str
    body: dict[str, Any]
    leave_after: int | None
    profile: SoakProfile | None
    epoch: int
    version: int | None
    strength: float | None

    def may_be_refused(self, status: int) -> bool:
        """Whether a refusal is one that the churn explains: what was asked for is gone, or not there yet."""
        return not self.is_settled and status in (404, 409)

    @property
    def is_settled(self) -> bool:
        """Whether what was asked for has been there, unchanged, from before the request until now."""
        return self.profile is None or (self.profile.settled and self.profile.epoch == self.epoch)

    @property
    def is_certain(self) -> bool:
        """Whether what was pinned can be nobody else's: by name only while it is settled, because names come back."""
        by_id = self.profile is not None and self.body.get("profile", {}).get("name") == self.profile.id
        return by_id or self.is_settled


class World:
    """Tenants with their keys, the live profiles, and the dice.

    Args:
        keys: one per tenant. questions: see `make_questions`.
        churn_questions: of how many questions each churned version is asked, so that their solo runs stay payable.
    """

    def __init__(self, keys: Sequence[str], questions: Sequence[Question], churn_questions: int, seed: int) -> None:
        self.keys = list(keys)
        self.questions = list(questions)
        self.rng = random.Random(seed)
        self.profiles: list[SoakProfile] = []
        self.gone: list[SoakProfile] = []
        self._churn_questions = churn_questions

    def live(self, tenant: int) -> list[SoakProfile]:
        """This tenant's profiles with at least one version."""
        return [profile for profile in self.profiles if profile.tenant == tenant and profile.versions]

    def next_request(self, tenant: int) -> Asked:
        """A request of this tenant: a third each for lasting profiles, churned ones and (nearly) the base model."""
        live = self.live(tenant)
        lasting = [profile for profile in live if profile.lasting]
        churned = [profile for profile in live if not profile.lasting]
        dice = self.rng.random()
        if dice < 0.02 and (gone := [profile for profile in self.gone[-8:] if profile.tenant == tenant]):
            return self._of(self.rng.choice(gone))
        if churned and dice < 0.4:
            return self._of(self.rng.choice(churned))
        if lasting and dice < 0.75:
            return self._of(self.rng.choice(lasting))
        return self._request(tenant, "base", self.rng.choice(self.questions), None, {"model": "base"})

    def _of(self, profile: SoakProfile) -> Asked:
        rng = self.rng
        ways: list[Way] = ["pinned", "pinned", "name", "field"]
        ways += ["alias"] if profile.aliases else []
        ways += ["user", "path"] if profile.users else []
        way = rng.choice(ways)
        number = rng.choice(list(profile.versions) or [1])
        named = f"base@{profile.name}"
        pool = self.questions
        if not profile.lasting:
            start = int(profile.id[-6:], 16) % len(pool)
            pool = [pool[(start + 5 * i) % len(pool)] for i in range(self._churn_questions)]
        question = rng.choice(pool)
        strength = None
        if way == "pinned":
            body: dict[str, Any] = {"model": f"{named}#{number}"}
        elif way == "name":
            body = {"model": named}
        elif way == "alias":
            body = {"model": f"{named}:{rng.choice(sorted(profile.aliases))}"}
            if profile.users and rng.random() < 0.5:
                body["user"] = rng.choice(sorted(profile.users))
        elif way == "field":
            strength = 0.5 if profile.lasting and question.number % 4 == 0 else None
            chosen = {"name": rng.choice((profile.name, profile.id)), "version": number}
            body = {"model": "base", "profile": chosen if strength is None else chosen | {"strength": strength}}
        else:
            body = {"model": "base"} | ({"user": rng.choice(sorted(profile.users))} if way == "user" else {})
        version = number if way in ("pinned", "field") else None
        return self._request(profile.tenant, way, question, profile, body, version, strength)

    def _request(
        self,
        tenant: int,
        way: Way,
        question: Question,
        profile: SoakProfile | None,
        body: dict[str, Any],
        version: int | None = None,
        strength: float | None = None,
    ) -> Asked:
        rng = self.rng
        streamed = rng.random() < 0.7
        body = {**question.body, **body, "stream": streamed}
        if streamed and rng.random() < 0.3:
            body["stream_options"] = {"include_usage": True}
        prefix = "/v1"
        if way == "path" and profile is not None:
            prefix = f"/v1/users/{rng.choice(sorted(profile.users))}"
        # What a hung-up stream was made from is known only where it was pinned: the reply says it at its end.
        leaves = streamed and (profile is None or version is not None) and rng.random() < 0.12
        return Asked(
            tenant, way, question, prefix + question.path, body, rng.randint(1, 6000) if leaves else None,
            profile, 0 if profile is None else profile.epoch, version, strength,
        )  # fmt: skip
