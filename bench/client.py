"""The HTTP client of all measurements, based on httpx.

`ask` sends one request. `ClientProcess` sends many from a separate process, so that its work does not disturb the
measured one, and reports its own processor time, so that this can be subtracted.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Literal, Self

import httpx
import numpy as np

#: Answered completely; refused with a status of 400 or more; left by the client as planned; over its deadline;
#: disconnected.
Outcome = Literal["answered", "refused", "left", "stuck", "broken"]
#: Key, method, path and body of a request.
Request = tuple[str, str, str, dict[str, Any] | None]


@dataclass(frozen=True)
class Reply:
    """The result of one request; `first_s` and `total_s` are the seconds to a stream's first text and to the end."""

    outcome: Outcome
    status: int
    content: bytes = b""
    first_s: float | None = None
    total_s: float = 0.0
    error: str = ""


async def ask(
    client: httpx.AsyncClient, request: Request, deadline_s: float = 120.0, leave_after: int | None = None
) -> Reply:
    """Sends a request and reads its reply; disconnects once `leave_after` bytes of the reply have arrived."""
    key, method, path, body = request
    started, status, first_s, error = time.perf_counter(), 0, None, ""
    content = bytearray()
    outcome: Outcome = "answered"
    try:
        async with (
            asyncio.timeout(deadline_s),
            client.stream(method, path, json=body, headers={"Authorization": f"Bearer {key}"}) as response,
        ):
            status = response.status_code
            async for block in response.aiter_raw():
                content += block
                if first_s is None and _has_text(block):
                    first_s = time.perf_counter() - started
                if leave_after is not None and len(content) >= leave_after:
                    outcome = "left"
                    break
    except TimeoutError:
        outcome = "stuck"
    except httpx.HTTPError as failure:
        outcome, error = "broken", repr(failure)
    if outcome == "answered" and status >= 400:
        outcome = "refused"
    return Reply(outcome, status, bytes(content), first_s, time.perf_counter() - started, error)


def _has_text(block: bytes) -> bool:
    return any(name + b'"' in block.replace(name + b'""', b"") for name in (b'"content":', b'"text":'))


@dataclass(frozen=True)
class Task:
    """A load for the client process."""

    urls: Sequence[str]  #: of the servers, which receive requests in turn
    requests: Sequence[Request]
    connections: int = 1  #: concurrent requests to each server
    seconds: float = 0.0  #: duration, with the requests repeated from the beginning; 0: each request once
    rate: float = 0.0  #: requests per second at random times, open loop; 0: each as soon as another has ended


@dataclass
class Taken:
    """Seconds of each request, to its first text, and of the whole load; the client's own processor seconds."""

    each: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def percentiles_ms(self) -> list[float]:
        """The 50th and the 95th percentile of a request's milliseconds."""
        return [float(seconds) * 1e3 for seconds in np.percentile(self.each, [50, 95])]


class ClientProcess:
    """The client in a separate process."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, task: Task) -> Taken:
        """Runs a load. Raises: RuntimeError: a request was not answered."""
        return self._pool.submit(_run, task).result()


def _run(task: Task) -> Taken:
    return asyncio.run(_load(task))


async def _load(task: Task) -> Taken:
    taken = Taken()
    limits = httpx.Limits(max_connections=None)
    clients = [
        httpx.AsyncClient(base_url=url, timeout=120, verify=False, trust_env=False, limits=limits) for url in task.urls
    ]
    numbered = enumerate(itertools.cycle(task.requests) if task.seconds else task.requests)

    async def one(number: int, request: Request) -> None:
        reply = await ask(clients[number % len(clients)], request)
        if reply.outcome != "answered":
            raise RuntimeError(f"{request[1:3]}: {reply.outcome} {reply.status} {reply.error} {reply.content[:300]!r}")
        taken.each.append(reply.total_s)
        taken.first += [reply.first_s] if reply.first_s is not None else []

    async def again() -> None:
        for number, request in numbered:
            await one(number, request)
            if task.seconds and time.perf_counter() > started + task.seconds:
                return

    async def at_random() -> None:
        draw, due = random.Random(0), started
        async with asyncio.TaskGroup() as group:
            for number, request in numbered:
                due += draw.expovariate(task.rate)
                if due > started + task.seconds:
                    return
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(number, request))

    started, cpu_s = time.perf_counter(), time.process_time()
    await (at_random() if task.rate else asyncio.gather(*(again() for _ in range(task.connections * len(clients)))))
    taken.seconds, taken.cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    for client in clients:
        await client.aclose()
    return taken
