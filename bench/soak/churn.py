"""Changes profiles while the load runs: fits, promotes, rolls back, archives and deletes them, and sets canaries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx

from alignez_core.models import persona_nano
from bench.client import ask
from bench.soak.world import SoakProfile, World

#: The cheapest proof.
_SMALL: dict[str, Any] = {"answers": 8, "tune_queries": 0, "held_out_queries": 4, "answer_tokens": 16}
#: Every kind of profile: edits, prefixes and the paper's method, with and without lookup.
_KINDS: tuple[dict[str, Any], ...] = (
    {"method": "distill", "contrast": 1.0},
    {"method": "alignez", "neighbors": 6},
    {"method": "alignez", "conditional": False},
    {"method": "prompt"},
)


class Churn:
    """The administrators of the tenants. A fit that takes longer than `job_deadline_s` is stuck."""

    def __init__(self, client: httpx.AsyncClient, world: World, job_deadline_s: float) -> None:
        self._client, self._world, self._deadline_s = client, world, job_deadline_s
        self._names = [f"churn-{i}" for i in range(8)]  # few, so that names are reused after a deletion
        self.stopping = asyncio.Event()  #: set: finish the current profile and begin no other
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []  #: unexpected replies and failed jobs

    async def run(self, pause_s: float) -> None:
        """Creates, changes and deletes one profile after another, about `pause_s` apart, until `stopping` is set."""
        rng = self._world.rng
        while not self.stopping.is_set():
            name = self._names.pop(rng.randrange(len(self._names)))
            profile = await self.make(rng.randrange(len(self._world.keys)), name, rng.randrange(len(_KINDS)), 8)
            if profile is not None:
                await self._pause(rng.uniform(0.5, 3))
                await self._change(profile)
                self._world.profiles.remove(profile)
                await self._call("profiles deleted", profile, "DELETE", "", expected=204)
            self._names.append(name)
            await self._pause(rng.uniform(0, 2 * pause_s))

    async def make(self, tenant: int, name: str, kind: int, queries: int, lasting: bool = False) -> SoakProfile | None:
        """Fits and promotes a profile with an alias and an end user; None when something failed."""
        profile = SoakProfile(tenant, name, lasting=lasting)
        if not await self._fit(profile, "/v1/profiles", {"name": name, **self._spec(kind, queries)}):
            return None
        # These fits are too small to pass their proof, so none is promoted automatically.
        await self._call("promoted", profile, "POST", "/promote", {"version": 1, "force": True})
        await self._call("aliases set", profile, "PUT", "/aliases/canary", {"version": 1})
        profile.user = f"user-{profile.id[-12:]}"
        await self._send(tenant, "PUT", f"/v1/users/{profile.user}/profile", {"profile": name, "alias": "canary"}, 200)
        self._world.profiles.append(profile)
        return profile

    async def _change(self, profile: SoakProfile) -> None:
        """A second version by canary, promotion and roll-back, then out of use and archived."""
        rng = self._world.rng
        spec = self._spec(rng.randrange(len(_KINDS)), 8)
        if self.stopping.is_set() or not await self._fit(profile, f"/v1/profiles/{profile.id}/versions", spec):
            return
        await self._call("aliases set", profile, "PUT", "/aliases/canary", {"weights": {"1": 0.5, "2": 0.5}})
        await self._call("promoted", profile, "POST", "/promote", {"version": 2, "force": True})
        await self._pause(rng.uniform(0.5, 3))
        await self._call("refused to archive", profile, "POST", "/versions/2/archive", expected=409)
        await self._call("rolled back", profile, "POST", "/rollback")
        await self._call("aliases set", profile, "PUT", "/aliases/canary", {"version": 1})
        del profile.versions[2]
        await self._call("archived", profile, "POST", "/versions/2/archive")

    async def _fit(self, profile: SoakProfile, path: str, body: Mapping[str, Any]) -> bool:
        """Queues a fit and waits for its end; true when it succeeded."""
        profile.chat_only |= body["fit"]["method"] == "prompt"
        reply = await self._send(profile.tenant, "POST", path, body, 202)
        if reply is None:
            return False
        profile.id = reply["profile"]["id"]
        job = f"/v1/jobs/{reply['job']['id']}"
        status, until = "queued", time.monotonic() + self._deadline_s
        while status in ("queued", "running") and time.monotonic() < until:
            await asyncio.sleep(0.2)
            status = (await self._send(profile.tenant, "GET", job, None, 200) or {"status": status})["status"]
        self.done[f"fits {status}"] += 1
        number = len(profile.versions) + 1
        version = await self._send(profile.tenant, "GET", f"/v1/profiles/{profile.id}/versions/{number}", None, 200)
        if status != "succeeded" or version is None:
            self.failures.append(f"{job} is {status}")
            return False
        profile.versions[number] = version["sha256"]
        return True

    async def _call(
        self, what: str, profile: SoakProfile, method: str, path: str, body: Any = None, expected: int = 200
    ) -> None:
        reply = await self._send(profile.tenant, method, f"/v1/profiles/{profile.id}{path}", body, expected)
        self.done[what] += reply is not None

    async def _send(self, tenant: int, method: str, path: str, body: Any, expected: int) -> dict[str, Any] | None:
        """The reply's JSON; None when it was not the expected one, which is noted."""
        reply = await ask(self._client, (self._world.keys[tenant], method, path, body), self._deadline_s)
        if reply.status != expected:
            self.failures.append(f"{method} {path} {reply.status} {reply.error}{reply.content[:300]!r}")
            return None
        content: dict[str, Any] = json.loads(reply.content or b"{}")
        return content

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    def _spec(self, kind: int, queries: int) -> dict[str, Any]:
        rng = self._world.rng
        persona = rng.choice(persona_nano.PERSONAS)
        return {
            "persona": {"preferred": persona.preferred, "dispreferred": persona.dispreferred},
            "queries": rng.sample(persona_nano.query_bank(), queries),
            "fit": {**_SMALL, **_KINDS[kind], "seed": rng.randrange(1000)},
        }
