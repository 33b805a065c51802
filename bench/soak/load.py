"""The soak's load: clients that always have a request in flight; and the solo runs for the comparison."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.client import Reply, ask
from bench.soak.answers import Answer, AnswerBook, Identity, text_of
from bench.soak.world import Asked, World


@dataclass
class Load:
    """Replies as the clients saw them."""

    world: World
    book: AnswerBook
    client: httpx.AsyncClient
    deadline_s: float
    #: By outcome and status: "answered 200", "refused 404 expected", …
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  #: unexpected ones
    #: (tenant, profile's name, number, sha256) of answers, to be checked against the database.
    owners: Counter[tuple[int, str, int, str]] = field(default_factory=Counter)
    firsts: list[float] = field(default_factory=list)  #: seconds to the first text of streams
    misnamed: int = 0  #: answers that name another profile or version than the one asked for
    started: float = 0.0

    async def run(self, streams: int, seconds: float) -> int:
        """Keeps `streams` requests in flight, half of them of one tenant; returns the number that never ended."""
        self.started = time.perf_counter()
        others = len(self.world.keys) - 1
        tenants = [0 if i % 2 == 0 else i // 2 % others + 1 for i in range(streams)]
        clients = [asyncio.create_task(self._client(tenant, self.started + seconds)) for tenant in tenants]
        try:
            done, pending = await asyncio.wait(
                clients, timeout=seconds + self.deadline_s + 10, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            return len(pending)
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, tenant: int, until: float) -> None:
        while time.perf_counter() < until:
            asked = self.world.next_request(tenant)
            request = (self.world.keys[tenant], "POST", asked.path, dict(asked.body))
            reply = await ask(self.client, request, self.deadline_s, asked.leave_after)
            self.note(asked, reply)
            # A failing server responds fast; do not retry at that rate.
            await asyncio.sleep(0.05 if reply.outcome in ("refused", "broken") else 0)

    def note(self, asked: Asked, reply: Reply) -> None:
        """Counts a reply and enters its answer in the book."""
        heard = Heard.of(reply, bool(asked.body["stream"]))
        outcome = "broken" if heard.error and reply.outcome in ("answered", "left") else reply.outcome
        expected = outcome == "refused" and asked.may_be_refused(reply.status)
        self.outcomes[f"{outcome} {reply.status}" + (" expected" if expected else "")] += 1
        self.firsts += [] if reply.first_s is None else [reply.first_s]
        if outcome in ("answered", "left"):
            self._check(asked, heard)
        elif not expected:
            self._fail(f"{outcome} {reply.status} after {reply.total_s:.2f} s: {heard.error}", asked)

    def _check(self, asked: Asked, heard: Heard) -> None:
        if heard.applied is not None:
            sha256 = heard.applied["sha256"]
        else:  # disconnected before the reply named its version, which the request pins then
            sha256 = None if asked.profile is None else asked.profile.versions[asked.version or 0]
        if not self._named_right(asked, heard):
            self.misnamed += 1
            self._fail(f"answered as {heard.applied}", asked)
        identity = Identity(None if sha256 is None else asked.tenant, sha256, asked.strength, asked.question.number)
        self.book.observe(identity, Answer(heard.text, heard.finish))

    def _named_right(self, asked: Asked, heard: Heard) -> bool:
        """True if the reply names a version that the request allows."""
        applied, profile = heard.applied, asked.profile
        if applied is None:
            return heard.finish is None
        if applied["sha256"] is None:
            # An end user whose profile was deleted is answered by the base model.
            by_user = "user" in asked.body or "/users/" in asked.path
            return profile is None or (by_user and not profile.lasting)
        self.owners[asked.tenant, applied["profile"], applied["version"], applied["sha256"]] += 1
        named = profile is not None and profile.name == applied["profile"]
        return named and asked.version in (None, applied["version"])

    def _fail(self, what: str, asked: Asked) -> None:
        self.failures.append(f"tenant {asked.tenant}, {asked.path}: {what} | {json.dumps(asked.body)[:400]}")


@dataclass(frozen=True)
class Heard:
    """A parsed generation reply. `finish` is None if the answer is incomplete."""

    text: str = ""
    finish: str | None = None
    applied: Mapping[str, Any] | None = None
    error: str = ""

    @classmethod
    def of(cls, reply: Reply, streamed: bool) -> Heard:
        """Parses a reply; `error` is set if the answer has no finish reason or an error event."""
        if reply.outcome not in ("answered", "left"):
            return cls(error=reply.error or reply.content[:600].decode(errors="replace"))
        blocks = reply.content.split(b"\n\n")[:-1] if streamed else [b"data: " + reply.content]
        text, finish, applied = "", None, None
        for block in blocks:
            if not block.startswith(b"data: ") or block == b"data: [DONE]":
                continue
            event = json.loads(block[6:])
            if "error" in event:
                return cls(text, error=json.dumps(event["error"])[:600])
            applied = event.get("alignez", applied)
            for choice in event["choices"]:
                part = choice.get("delta") or choice.get("message") or choice
                text += part.get("content") or part.get("text") or ""
                finish = choice["finish_reason"] or finish
        cut = reply.outcome == "answered" and finish is None
        return cls(text, finish, applied, "the reply ended without a finish_reason" if cut else "")


@dataclass(frozen=True)
class Alone:
    """Makes solo runs on an idle service; `places` maps (tenant, sha256) to a profile's id and a version's number."""

    client: httpx.AsyncClient
    world: World
    places: Mapping[tuple[int, str], tuple[str, int]]

    async def ask(self, identity: Identity, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """The complete reply. Raises: ValueError: it is an error, or of another version."""
        question, tenant = self.world.questions[identity.question], identity.tenant or 0
        body: dict[str, Any] = {**question.body, "model": "base", **changes}
        if identity.sha256 is not None:
            profile, number = self.places[tenant, identity.sha256]
            body["profile"] = {"name": profile, "version": number, "strength": identity.strength}
        if "messages" in body and "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        reply = await ask(self.client, (self.world.keys[tenant], "POST", f"/v1{question.path}", body))
        content: dict[str, Any] = json.loads(reply.content) if reply.outcome == "answered" else {}
        if not content or content["alignez"]["sha256"] != identity.sha256:
            raise ValueError(f"the solo run of {body}: {reply.outcome} {reply.status} {reply.content[-300:]!r}")
        return content

    async def fill(self, book: AnswerBook, identities: list[Identity], minutes: float) -> list[str]:
        """Records references for at most `minutes`; returns the failures, and stops after five."""
        failures: list[str] = []
        until = time.monotonic() + 60 * minutes
        for identity in identities:
            if time.monotonic() > until or len(failures) >= 5:
                break
            try:
                reply = await self.ask(identity, {})
                book.references[identity] = Answer(text_of(reply), reply["choices"][0]["finish_reason"])
            except (ValueError, KeyError) as error:
                failures.append(repr(error))
        return failures
