"""The client of `bench.service`, a process of its own: `python -m bench.service_client PORT KEY`.

HTTP/1.1 by hand on asyncio streams: a client library would spend more on 64 streams than the server does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def main(port: int, key: str) -> None:
    """Answers tasks from stdin until it ends."""
    loop = asyncio.get_running_loop()
    pool: list[Connection] = []
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        task, bodies = json.loads(line)
        wanted = len(bodies) if task == "throughput" else 1
        while len(pool) < wanted:
            pool.append(await asyncio.open_connection("127.0.0.1", port))
        if task == "throughput":
            clients = [[_encode(key, body) for body in own] for own in bodies]
            started = time.perf_counter()
            await asyncio.gather(*(_in_turn(pool[i], requests) for i, requests in enumerate(clients)))
            result: Any = time.perf_counter() - started
        else:
            result = [await _exchange(pool[0], _encode(key, body)) for body in bodies]
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


def _encode(key: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _in_turn(connection: Connection, requests: list[bytes]) -> None:
    for request in requests:
        await _exchange(connection, request)


async def _exchange(connection: Connection, request: bytes) -> float:
    """Sends one request and reads its stream to the end; returns seconds to the first text."""
    reader, writer = connection
    started = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError((head + await reader.read(2000)).decode(errors="replace"))
    first = 0.0
    tail = b""
    while True:
        block = await reader.read(65536)
        if not block:
            raise RuntimeError("the connection closed early")
        if not first and b'"content":"' in block.replace(b'"content":""', b""):
            first = time.perf_counter() - started
        tail = (tail + block)[-8:]
        if tail.endswith(b"\r\n0\r\n\r\n"):
            return first


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
