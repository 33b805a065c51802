"""Profiles that come, change and go while the load runs: fitted, promoted, rolled back, put on a canary, archived,
deleted under the requests that use them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx

from alignez_core.models import persona_nano
from bench.soak_world import SoakProfile, World

#: A proof that takes no time.
_SMALL: dict[str, Any] = {"answers": 8, "tune_queries": 0, "held_out_queries": 4, "answer_tokens": 16}
_PERSONAS = persona_nano.PERSONAS
_FINAL = ("succeeded", "failed", "cancelled")
#: So few that names come back after their profile's deletion.
_NAMES = 8
_POLL_S = 0.5


class Churn:
    """The administrators of the tenants.

    Args:
        client: of the API. world: what it changes.
        keep: live churned profiles of a tenant; the oldest goes when there are more.
        job_deadline_s: a fit that takes longer is stuck.
    """

    def __init__(self, client: httpx.AsyncClient, world: World, keep: int, job_deadline_s: float) -> None:
        self._client = client
        self._world = world
        self._keep = keep
        self._deadline_s = job_deadline_s
        self._taken: set[tuple[int, str]] = set()
        self._stopping = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.jobs: Counter[str] = Counter()
        #: Replies that nothing explains: "PUT /v1/… 500 …".
        self.failures: list[str] = []

    def stop(self) -> None:
        """What has begun is finished, nothing new begins."""
        self._stopping.set()

    async def lasting(self, tenant: int, name: str, body: Mapping[str, Any]) -> None:
        """Makes a profile that stays, with an alias and an end user. Raises: RuntimeError: its fit failed."""
        profile = SoakProfile(tenant, name, lasting=True)
        status = await self._fit(profile, "/v1/profiles", {"name": name, **body})
        if status != "succeeded":
            raise RuntimeError(f"the fit of {name} ended as {status}: {self.failures}")
        await self._promote_first(profile)
        await self._canary(profile, "stable", [1])
        await self._assign(profile, None)
        self._world.profiles.append(profile)
        profile.settled = True

    async def run(self, tenants: int, pause_s: float) -> None:
        """One life after the other, about `pause_s` apart, until `stop`."""
        while not self._stopping.is_set():
            tenant = self._world.rng.randrange(tenants)
            mine = [p for p in self._world.profiles if p.tenant == tenant and not p.lasting and p.settled]
            if len(mine) >= self._keep:
                await self._delete(mine[0])
            await self._life(tenant)
            await self._pause(self._world.rng.uniform(0, 2 * pause_s))

    async def _life(self, tenant: int) -> None:
        rng = self._world.rng
        free = [f"churn-{i}" for i in range(_NAMES) if (tenant, f"churn-{i}") not in self._taken]
        if not free:
            await self._pause(1)
            return
        profile = SoakProfile(tenant, rng.choice(free))
        self._taken.add((tenant, profile.name))
        end = rng.choices((None, "cancel", "delete"), (0.84, 0.08, 0.08))[0]
        status = await self._fit(profile, "/v1/profiles", {"name": profile.name, **self.spec()}, end_early=end)
        if status != "succeeded":
            if end != "delete":
                await self._delete(profile)
            return
        await self._promote_first(profile)
        self._world.profiles.append(profile)
        await self._assign(profile, None)
        profile.settled = True
        await self._pause(rng.uniform(0.5, 3))
        if rng.random() < 0.7:
            await self._second_version(profile)
        if rng.random() < 0.3:
            await self._delete(profile)

    async def _promote_first(self, profile: SoakProfile) -> None:
        """These fits are too small to prove themselves, so none becomes the default by itself."""
        await self._call("promoted", profile, "POST", "/promote", {"version": 1, "force": True})

    async def _second_version(self, profile: SoakProfile) -> None:
        rng = self._world.rng
        status = await self._fit(profile, f"/v1/profiles/{profile.id}/versions", self.spec(), number=2)
        if status != "succeeded":
            return
        await self._canary(profile, "canary", [1, 2])
        await self._assign(profile, "canary")
        await self._call("promoted", profile, "POST", "/promote", {"version": 2, "force": True})
        await self._pause(rng.uniform(0.5, 3))
        await self._call("rolled back", profile, "POST", "/rollback", expected=(200, 409))
        await self._pause(rng.uniform(0.5, 3))
        if rng.random() < 0.5:
            # Out of use only when nothing points to it: a refusal before that is part of the plan.
            await self._call("refused to archive", profile, "POST", "/versions/2/archive", expected=(409,))
            await self._retire_second(profile)

    async def _retire_second(self, profile: SoakProfile) -> None:
        await self._call("promoted", profile, "POST", "/promote", {"version": 1, "force": True})
        await self._canary(profile, "canary", [1])
        profile.unsettle()
        sha256 = profile.versions.pop(2)
        if await self._call("archived", profile, "POST", "/versions/2/archive") != 200:
            profile.versions[2] = sha256
        profile.settled = True

    async def _fit(
        self, profile: SoakProfile, path: str, body: Mapping[str, Any], *, number: int = 1, end_early: str | None = None
    ) -> str:
        """Queues a fit and waits for its end; the job's status, "deleted" when its profile was deleted meanwhile.

        Args:
            end_early: "cancel" the job or "delete" the profile while it waits or runs.
        """
        key = self._world.keys[profile.tenant]
        reply = await self._send(key, "POST", path, body, (202,))
        if reply is None:
            return "refused"
        profile.id = profile.id or reply["profile"]["id"]
        self.done["fits begun"] += 1
        job = f"/v1/jobs/{reply['job']['id']}"
        if end_early is not None:
            await self._pause(self._world.rng.uniform(0, 3))
        if end_early == "cancel":
            await self._send(key, "POST", f"{job}/cancel", None, (200, 202, 409))
        elif end_early == "delete":
            await self._delete(profile)
        until = time.monotonic() + self._deadline_s
        while time.monotonic() < until:
            found = await self._send(key, "GET", job, None, (200,))
            if found is not None and found["status"] in _FINAL:
                self.jobs[found["status"]] += 1
                if found["status"] == "failed" or (found["status"] == "cancelled" and end_early is None):
                    self.failures.append(f"{job} ended as {found['status']}: {found['error']}")
                if end_early == "delete":
                    return "deleted"
                if found["status"] == "succeeded":
                    version = await self._send(key, "GET", f"/v1/profiles/{profile.id}/versions/{number}", None, (200,))
                    if version is not None:
                        profile.versions[number] = version["sha256"]
                return str(found["status"])
            await asyncio.sleep(_POLL_S)
        self.jobs["stuck"] += 1
        self.failures.append(f"{job} had not ended after {self._deadline_s:.0f} s")
        return "stuck"

    async def _canary(self, profile: SoakProfile, alias: str, numbers: list[int]) -> None:
        body: dict[str, Any] = {"weights": {str(n): 1 / len(numbers) for n in numbers}}
        if len(numbers) == 1:
            body = {"version": numbers[0]}
        if await self._call("aliases set", profile, "PUT", f"/aliases/{alias}", body) == 200:
            profile.aliases.add(alias)

    async def _assign(self, profile: SoakProfile, alias: str | None) -> None:
        user = f"user-{profile.id[-12:]}-{len(profile.users)}"
        body = {"profile": profile.name} | ({} if alias is None else {"alias": alias})
        key = self._world.keys[profile.tenant]
        if await self._send(key, "PUT", f"/v1/users/{user}/profile", body, (200,)) is not None:
            self.done["users assigned"] += 1
            profile.users.add(user)

    async def _delete(self, profile: SoakProfile) -> None:
        profile.unsettle()
        if profile.id and await self._call("profiles deleted", profile, "DELETE", "", expected=(204,)) == 204:
            if profile in self._world.profiles:
                self._world.profiles.remove(profile)
                self._world.gone.append(profile)
            self._taken.discard((profile.tenant, profile.name))

    async def _call(
        self,
        what: str,
        profile: SoakProfile,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        expected: tuple[int, ...] = (200,),
    ) -> int:
        key = self._world.keys[profile.tenant]
        status, _ = await self._reply(key, method, f"/v1/profiles/{profile.id}{path}", body, expected)
        if status in expected:
            self.done[what] += 1
        return status

    async def _send(
        self, key: str, method: str, path: str, body: Mapping[str, Any] | None, expected: tuple[int, ...]
    ) -> dict[str, Any] | None:
        """The reply's JSON; None when it was not an expected one, which is noted."""
        status, content = await self._reply(key, method, path, body, expected)
        return content if status in expected else None

    async def _reply(
        self, key: str, method: str, path: str, body: Mapping[str, Any] | None, expected: tuple[int, ...]
    ) -> tuple[int, dict[str, Any]]:
        try:
            response = await self._client.request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})
        except httpx.HTTPError as error:
            self.failures.append(f"{method} {path}: {error!r}")
            return 0, {}
        if response.status_code not in expected:
            self.failures.append(f"{method} {path} {response.status_code}: {response.text[:300]}")
        return response.status_code, response.json() if response.content else {}

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def spec(self) -> dict[str, Any]:
        """A small fit: an edit or the paper's method, global or sample-conditional."""
        rng = self._world.rng
        persona = rng.choice(_PERSONAS)
        conditional = rng.random() < 0.5
        return {
            "persona": {"preferred": persona.preferred, "dispreferred": persona.dispreferred},
            "queries": rng.sample(persona_nano.query_bank(), rng.randint(8, 16)),
            "fit": {
                **_SMALL,
                **({"method": "alignez", "neighbors": 6} if conditional else {"method": "distill", "contrast": 1.0}),
                "seed": rng.randrange(1000),
            },
        }


def lasting_spec(index: int, queries: int) -> dict[str, Any]:
    """The kinds of profile in turn: edits, prefixes and the paper's method, with and without lookup, every persona."""
    kinds: tuple[dict[str, Any], ...] = (
        {"method": "distill", "contrast": 1.0},
        {"method": "alignez"},
        {"method": "alignez", "conditional": False},
        {"method": "prompt"},
    )
    persona = _PERSONAS[index % len(_PERSONAS)]
    return {
        "persona": {"preferred": persona.preferred, "dispreferred": persona.dispreferred},
        "queries": persona_nano.query_bank()[index * 20 : index * 20 + queries],
        "fit": {**_SMALL, **kinds[index % len(kinds)]},
    }
