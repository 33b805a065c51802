"""The soak's load: clients that always have a request in flight, and the solo runs that their answers are held to."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.soak_answers import Answer, AnswerBook, Identity
from bench.soak_http import Connection, Reply
from bench.soak_world import Asked, World

#: Failures that are shown in full.
SHOWN = 12
_GIVE_UP = 5


@dataclass(frozen=True)
class Sample:
    """One finished request: seconds since the load began, tenant, seconds to the first text (None: not streamed)."""

    at_s: float
    tenant: int
    first_s: float | None
    outcome: str


@dataclass
class Load:
    """What the clients saw.

    Args:
        misnamed: answers that name another profile or version than the one asked for.
        outcomes: by outcome and status: "answered 200", "refused 404 expected", …
        failures: the first ones that nothing explains, in full.
        unattributed: beginnings of answers of which nobody can tell whose they are.
        owners: who was answered with which sha256, to be checked against the database: (tenant, profile's name,
            number, sha256) → answers.
    """

    world: World
    book: AnswerBook
    port: int
    deadline_s: float
    samples: list[Sample] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    owners: Counter[tuple[int, str, int, str]] = field(default_factory=Counter)
    misnamed: int = 0
    unattributed: int = 0
    in_flight: int = 0
    worst_lag_s: float = 0.0
    started: float = 0.0
    _stopping: bool = False

    async def run(self, streams: int, seconds: float, drain_s: float) -> int:
        """Keeps `streams` requests in flight for a time, then lets them end; returns how many did not.

        Half of the clients are the first tenant's and the rest the others', so that fairness has something to do.
        """
        self.started = time.perf_counter()
        tenants = len(self.world.keys)
        clients = [
            asyncio.create_task(self._client(0 if i % 2 == 0 or tenants == 1 else 1 + (i // 2) % (tenants - 1)))
            for i in range(streams)
        ]
        lag = asyncio.create_task(self._watch_lag())
        try:
            done, _ = await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            self._stopping = True
            _, pending = await asyncio.wait(clients, timeout=drain_s)
            return len(pending)
        finally:
            for task in (*clients, lag):
                task.cancel()
            await asyncio.gather(*clients, lag, return_exceptions=True)

    async def _client(self, tenant: int) -> None:
        connection = Connection(self.port, self.deadline_s)
        try:
            while not self._stopping:
                asked = self.world.next_request(tenant)
                self.in_flight += 1
                try:
                    reply = await connection.ask(asked.path, self.world.keys[tenant], asked.body, asked.leave_after)
                finally:
                    self.in_flight -= 1
                self._note(asked, reply)
                if reply.outcome in ("refused", "broken"):
                    await asyncio.sleep(0.05)  # a broken server must not be hammered at the speed of its errors
        finally:
            connection.close()

    def _note(self, asked: Asked, reply: Reply) -> None:
        now = time.perf_counter() - self.started
        expected = reply.outcome == "refused" and asked.may_be_refused(reply.status)
        outcome = f"{reply.outcome} {reply.status}" + (" expected" if expected else "")
        self.outcomes[outcome] += 1
        self.ways[asked.way] += 1
        self.samples.append(Sample(now, asked.tenant, reply.first_s, outcome))
        if reply.outcome in ("answered", "left"):
            self._check(asked, reply, now)
        elif not expected:
            self._fail(f"{outcome} after {reply.total_s:.2f} s", asked, now, reply.error)

    def _check(self, asked: Asked, reply: Reply, now: float) -> None:
        example = {"way": asked.way, "at_s": round(now, 1), "streamed": asked.body["stream"], "tenant": asked.tenant}
        if asked.profile is not None:
            example["settled"] = asked.is_settled
        if reply.applied is None:
            if reply.outcome == "answered":
                self.misnamed += 1
                self._fail("an answer without its alignez object", asked, now)
                return
            # A client that hung up knows what it asked for only, and a deleted profile's name may be another's by now.
            sha256 = None if asked.profile is None else asked.profile.versions.get(asked.version or 0)
            if asked.profile is not None and (sha256 is None or not asked.is_certain):
                self.unattributed += 1
                return
        else:
            sha256 = reply.applied["sha256"]
            example["neighbors"] = reply.applied["neighbors"]
            if not self._named_right(asked, reply.applied):
                self.misnamed += 1
                self._fail(f"answered as {reply.applied}", asked, now)
        tenant = None if sha256 is None else asked.tenant
        identity = Identity(tenant, sha256, asked.strength, asked.question.number)
        finish = reply.finish if reply.outcome == "answered" else None
        self.book.observe(identity, Answer(reply.text, finish), example)

    def _named_right(self, asked: Asked, applied: Mapping[str, Any]) -> bool:
        """Whether the version that the reply names may be the one asked for."""
        if applied["sha256"] is None:
            # An end user whose profile was deleted is answered by the base model.
            return asked.profile is None or (asked.way in ("user", "path") and asked.may_be_refused(404))
        self.owners[asked.tenant, applied["profile"], applied["version"], applied["sha256"]] += 1
        if asked.profile is None or asked.profile.name != applied["profile"]:
            return False
        return asked.version is None or asked.version == applied["version"]

    def _fail(self, what: str, asked: Asked, now: float, error: str = "") -> None:
        if len(self.failures) < SHOWN:
            body = json.dumps(asked.body)[:400]
            self.failures.append(f"{now:.1f} s, tenant {asked.tenant}, {asked.path}: {what}: {error} | {body}")

    async def _watch_lag(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.05)
            self.worst_lag_s = max(self.worst_lag_s, time.perf_counter() - before - 0.05)


class NotAnswered(Exception):
    """A solo run that failed."""


class Alone:
    """Asks one request after the other, on an otherwise idle service.

    Args:
        places: (tenant, sha256) → profile id and version number, for pinning.
    """

    def __init__(self, client: httpx.AsyncClient, world: World, places: Mapping[tuple[int, str], tuple[str, int]]):
        self._client = client
        self._world = world
        self._places = places

    def knows(self, identity: Identity) -> bool:
        """Whether the version is there to be asked."""
        return identity.sha256 is None or (identity.tenant or 0, identity.sha256) in self._places

    async def ask(self, identity: Identity, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """The whole reply. Raises: NotAnswered: it is no answer, or of another version."""
        question = self._world.questions[identity.question]
        tenant = identity.tenant or 0
        body: dict[str, Any] = {**question.body, "model": "base", **changes}
        if identity.sha256 is not None:
            profile, number = self._places[tenant, identity.sha256]
            body["profile"] = {"name": profile, "version": number}
            if identity.strength is not None:
                body["profile"]["strength"] = identity.strength
        if question.chat and "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        headers = {"Authorization": f"Bearer {self._world.keys[tenant]}"}
        try:
            response = await self._client.post(f"/v1{question.path}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise NotAnswered(f"the solo run of {body}: {error!r}") from None
        if response.status_code != 200:
            raise NotAnswered(f"the solo run of {body} answered {response.status_code}: {response.text[:300]}")
        reply: dict[str, Any] = response.json()
        if reply["alignez"]["sha256"] != identity.sha256:
            raise NotAnswered(f"the solo run of {body} was answered as {reply['alignez']}")
        return reply

    async def answer(self, identity: Identity) -> Answer:
        """The reference of an identity."""
        reply = await self.ask(identity, {})
        choice = reply["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return Answer(text, choice["finish_reason"])


async def fill(
    book: AnswerBook, alone: Alone, identities: list[Identity], until: float, note: Callable[[int], None]
) -> list[str]:
    """Asks identities alone until `until` (`time.monotonic`); returns what was not answered, and why.

    After a few failures it gives up: what is left counts as not compared.
    """
    failures: list[str] = []
    for asked, identity in enumerate(identities, 1):
        if time.monotonic() > until or len(failures) >= _GIVE_UP:
            break
        if not alone.knows(identity):
            continue
        try:
            book.refer(identity, await alone.answer(identity))
        except NotAnswered as error:
            failures.append(str(error))
        note(asked)
    return failures
