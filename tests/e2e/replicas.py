"""Several processes of each role as a cluster runs them, and callers behind something like a Kubernetes Service."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.processes import ROOT, Processes, Running

_FIT = {
    "method": "distill", "contrast": 1, "layers": 2, "answers": 4, "tune_queries": 0, "held_out_queries": 0,
    "answer_tokens": 12,
}  # fmt: skip


def small_profile(name: str, **fit: int) -> dict[str, Any]:
    """A profile that is fitted in seconds: four queries, one form of the edit, and no proof."""
    queries = [{"text": f"How do I learn {hobby}?"} for hobby in ("chess", "cooking", "dancing", "knitting")]
    persona = {"preferred": "cheerful", "dispreferred": "gloomy"}
    return {"name": name, "persona": persona, "queries": queries, "fit": {**_FIT, **fit}}


def replicas_of(database_url: str, broker_url: str, folder: Path, code: Path = ROOT, **settings: str) -> Processes:
    """Starts processes of a checkout (this one by default) on one database and broker, with short pauses."""
    common = {
        "ALIGNEZ_DATABASE_URL": database_url,
        "ALIGNEZ_BROKER_URL": broker_url,
        "ALIGNEZ_WORKER_RELAY_SWEEP_S": "0.5",
        "ALIGNEZ_WORKER_RELAY_RESEND_S": "2",
    }
    return Processes(folder, {**common, **settings}, code)


class Balancer:
    """Sends each request to the next replica that is ready, over connections that are kept. Nothing is tried twice.

    Args:
        headers: of every request.
    """

    POLL_S = 0.2

    def __init__(self, replicas: list[Running], headers: dict[str, str]) -> None:
        self._headers = headers
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._ready: list[str] = []
        self._turn = itertools.count()
        for replica in replicas:
            self.add(replica)

    def add(self, replica: Running) -> None:
        self._clients[replica.url] = httpx.AsyncClient(
            base_url=replica.url, headers=self._headers, timeout=60, trust_env=False
        )
        self._ready.append(replica.url)

    @property
    def next(self) -> httpx.AsyncClient:
        """Raises: httpx.ConnectError: no replica is ready."""
        ready = self._ready
        if not ready:
            raise httpx.ConnectError("no replica is ready")
        return self._clients[ready[next(self._turn) % len(ready)]]

    async def watch(self) -> None:
        """Asks for readiness until it is cancelled."""
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            while True:
                for url in list(self._clients):
                    try:
                        ready = (await client.get(f"{url}/ready")).status_code == 200
                    except httpx.HTTPError:
                        ready = False
                    if ready != (url in self._ready):
                        self._ready = [*self._ready, url] if ready else [each for each in self._ready if each != url]
                await asyncio.sleep(self.POLL_S)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()


@dataclass
class Load:
    """Callers, each answer compared with the one that it must be.

    Args:
        answers: to each question, what it is answered when it is asked alone.
        pause_s: of a caller between two requests. Two cores also have to start processes beside them.
    """

    balancer: Balancer
    questions: list[dict[str, Any]]
    answers: list[str]
    pause_s: float = 0.3
    phase: str = "before"
    done: Counter[tuple[str, str]] = field(default_factory=Counter)  #: (kind, phase it ended in)
    failures: list[str] = field(default_factory=list)
    streaming: Counter[str] = field(default_factory=Counter)  #: streams that have begun and not ended, by replica
    jobs: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[None]:
        """Streams, whole answers, reads and new profiles while the block runs; then what runs is finished."""
        stop = asyncio.Event()
        kinds: list[Callable[[int], Awaitable[None]]] = [self._stream, self._stream, self._whole, self._read]
        tasks = [asyncio.create_task(self._call(kinds[i % len(kinds)], i, stop)) for i in range(callers)]
        tasks.append(asyncio.create_task(self._call(self._create, 0, stop)))
        watch = asyncio.create_task(self.balancer.watch())
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 90)
            watch.cancel()

    async def _call(self, kind: Callable[[int], Awaitable[None]], first: int, stop: asyncio.Event) -> None:
        for number in itertools.count(first):
            if stop.is_set():
                return
            try:
                await kind(number)
                self.done[kind.__name__.strip("_"), self.phase] += 1
                await asyncio.sleep(self.pause_s)
            except (httpx.HTTPError, AssertionError, ValueError) as error:
                self.failures.append(f"{self.phase}: {kind.__name__}: {type(error).__name__}: {str(error)[:300]}")
                await asyncio.sleep(0.05)

    async def _stream(self, number: int) -> None:
        number %= len(self.questions)
        body = {**self.questions[number], "stream": True}
        client, lines = self.balancer.next, []
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200, (await reply.aread()).decode()
            with self._counted(str(client.base_url)):
                async for line in reply.aiter_lines():
                    if line:
                        lines.append(line.removeprefix("data: "))
        assert lines[-1] == "[DONE]", f"cut off after {lines[-1:]}"
        choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
        assert choices[-1]["finish_reason"] in ("stop", "length")
        assert "".join(choice["delta"].get("content") or "" for choice in choices) == self.answers[number]

    @contextlib.contextmanager
    def _counted(self, url: str) -> Iterator[None]:
        self.streaming[url] += 1
        try:
            yield
        finally:
            self.streaming[url] -= 1

    async def _whole(self, number: int) -> None:
        number %= len(self.questions)
        reply = await self.balancer.next.post("/v1/chat/completions", json=self.questions[number])
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == self.answers[number]

    async def _read(self, _: int) -> None:
        reply = await self.balancer.next.get("/v1/profiles")
        assert reply.status_code == 200, reply.text

    async def _create(self, _: int) -> None:
        body = small_profile(f"made-{time.monotonic_ns()}", answer_tokens=8)
        reply = await self.balancer.next.post("/v1/profiles", json=body)
        assert reply.status_code == 202, reply.text
        self.jobs.append(reply.json()["job"]["id"])
        await asyncio.sleep(3)
