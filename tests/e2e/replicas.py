"""Several processes of each role as a cluster runs them, and callers behind something like a Kubernetes Service."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cli.local_stack.process import free_port
from tests.worker.processes import kill_tree, wait_for

_ROOT = Path(__file__).parents[2]
_FIT = {
    "method": "distill", "contrast": 1, "layers": 2, "answers": 4, "tune_queries": 0, "held_out_queries": 0,
    "answer_tokens": 12,
}  # fmt: skip


def small_profile(name: str, **fit: int) -> dict[str, Any]:
    """A profile that is fitted in seconds: four queries, one form of the edit, and no proof."""
    queries = [{"text": f"How do I learn {hobby}?"} for hobby in ("chess", "cooking", "dancing", "knitting")]
    persona = {"preferred": "cheerful", "dispreferred": "gloomy"}
    return {"name": name, "persona": persona, "queries": queries, "fit": {**_FIT, **fit}}


@dataclass
class Replica:
    """One process, started and ready."""

    role: str
    process: subprocess.Popen[bytes]
    url: str = ""

    def end(self) -> int:
        """SIGTERM, as Kubernetes sends it; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> int:
        kill_tree(self.process)
        return self.process.returncode


@dataclass
class Replicas:
    """Starts processes on one database and broker; `close` kills what is left."""

    database_url: str
    broker_url: str
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    #: A release's code; this checkout's by default.
    code: Path = _ROOT
    _started: list[Replica] = field(default_factory=list)

    def start(self, role: str, **settings: str) -> Replica:
        """A process of a role (api, worker, relay), once it is ready."""
        name = f"{role}-{len(self._started)}-{os.urandom(3).hex()}"
        flag, port = self.folder / f"{name}.ready", free_port()
        arguments = [] if role == "api" else ["--ready-file", str(flag)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ALIGNEZ_")}
        environment |= {
            "PYTHONPATH": str(self.code),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "ALIGNEZ_DATABASE_URL": self.database_url,
            "ALIGNEZ_BROKER_URL": self.broker_url,
            "ALIGNEZ_API_PORT": str(port),
            "ALIGNEZ_WORKER_RELAY_SWEEP_S": "0.5",
            "ALIGNEZ_WORKER_RELAY_RESEND_S": "2",
            **self.settings,
            **settings,
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", role, *arguments],
                cwd=self.code, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        replica = Replica(role, process, f"http://127.0.0.1:{port}" if role == "api" else "")
        self._started.append(replica)

        def ready() -> bool:
            assert process.poll() is None, f"{name} ended:\n{self.log(name)}"
            return _is_ready(replica.url) if role == "api" else flag.exists()

        wait_for(ready, 120, f"{name} ready")
        return replica

    def log(self, name: str = "") -> str:
        """What processes have written, the last of it."""
        return "\n".join(
            f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob(f"{name}*.log"))
        )

    def close(self) -> None:
        for replica in self._started:
            replica.kill()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


class Balancer:
    """Sends each request to the next replica that is ready, over connections that are kept. Nothing is tried twice.

    Args:
        headers: of every request.
    """

    POLL_S = 0.2

    def __init__(self, replicas: list[Replica], headers: dict[str, str]) -> None:
        self._headers = headers
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._ready: list[str] = []
        self._turn = itertools.count()
        for replica in replicas:
            self.add(replica)

    def add(self, replica: Replica) -> None:
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
