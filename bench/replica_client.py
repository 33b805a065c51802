"""The client of `bench.replicas`, a process of its own: `python -m bench.replica_client`.

HTTP/1.1 by hand on asyncio streams, and every request made into bytes beforehand: it shares the cores with what it
measures, so it must cost little beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def main() -> None:
    """Answers tasks from stdin until it ends: ports, requests, connections for each port, seconds, and perhaps a rate.

    The answer: seconds that it took, and those of each request. Without a rate each connection asks again as soon as
    it has its answer; with one, requests come at random moments, so many a second, whether others have ended or not.
    """
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        task = json.loads(line)
        requests = [_encode(*request) for request in task["requests"]]
        pools = [
            [await asyncio.open_connection("127.0.0.1", port) for _ in range(task["connections"])]
            for port in task["ports"]
        ]
        taken: list[float] = []
        started = time.perf_counter()
        if task["rate"] is None:
            # Replica r gets every R-th request, in turn.
            turns = [itertools.cycle(requests[r :: len(pools)]) for r in range(len(pools))]
            until = started + task["seconds"]
            asking = [_again(connection, turns[r], until, taken) for r, pool in enumerate(pools) for connection in pool]
            await asyncio.gather(*asking)
        else:
            await _at_random(pools, requests, task["rate"], task["seconds"], taken)
        ended = time.perf_counter() - started
        for _, writer in itertools.chain(*pools):
            writer.close()
        sys.stdout.write(json.dumps({"seconds": ended, "taken": taken}) + "\n")
        sys.stdout.flush()


async def _again(connection: Connection, turn: Iterator[bytes], until: float, taken: list[float]) -> None:
    while (started := time.perf_counter()) < until:
        await _exchange(connection, next(turn))
        taken.append(time.perf_counter() - started)


async def _at_random(
    pools: Sequence[Sequence[Connection]], requests: Sequence[bytes], rate: float, seconds: float, taken: list[float]
) -> None:
    free: list[asyncio.Queue[Connection]] = [asyncio.Queue() for _ in pools]
    for queue, pool in zip(free, pools, strict=True):
        for connection in pool:
            queue.put_nowait(connection)

    async def ask(number: int) -> None:
        started = time.perf_counter()  # before a connection is free: waiting for one is waiting too
        queue = free[number % len(free)]
        connection = await queue.get()
        await _exchange(connection, requests[number % len(requests)])
        taken.append(time.perf_counter() - started)
        queue.put_nowait(connection)

    draw = random.Random(0)
    started = time.perf_counter()
    due = 0.0
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            due += draw.expovariate(rate)
            if due > seconds:
                break
            if (ahead := due - (time.perf_counter() - started)) > 0:
                await asyncio.sleep(ahead)
            group.create_task(ask(number))


def _encode(key: str, method: str, path: str, body: Any) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _exchange(connection: Connection, request: bytes) -> bytes:
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    fields = head.lower()
    at = fields.index(b"content-length:") + len(b"content-length:")
    content = await reader.readexactly(int(fields[at : fields.index(b"\r\n", at)]))
    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
        raise RuntimeError((head + content[:500]).decode(errors="replace"))
    return content


if __name__ == "__main__":
    asyncio.run(main())
