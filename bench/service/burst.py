"""A burst of requests beyond connections and threads: `python -m bench.service.burst [--quick]`.

One tenant lists its profiles 400 times, 150 at once, on the real server and an embedded Postgres. The client uses plain
sockets: with httpx most of the time would be its own. The first burst also opens the pool's connections.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import numpy as np

from bench.processes import Processes, database
from bench.report import Report, options
from cli.local_stack.broker import RedisServer
from profiles.service import create_key, create_tenant
from profiles.uow import UnitOfWork

REQUESTS, PARALLEL = 400, 150


def run(quick: bool = False) -> Report:
    """Statuses and latencies of several bursts."""
    report = Report("burst", f"{REQUESTS} × GET /v1/profiles, {PARALLEL} in parallel", ("p50", "p95"))
    with database() as data, RedisServer(data.folder / "redis") as redis:
        with UnitOfWork.open(data.sessions) as uow:
            _, secret = create_key(uow, create_tenant(uow, "burst").id, "member", "burst")
        settings = {"ALIGNEZ_DATABASE_URL": data.url, "ALIGNEZ_BROKER_URL": redis.url, "ALIGNEZ_API_ROLE": "control",
                    "ALIGNEZ_API_LOG_LEVEL": "warning"}  # fmt: skip
        with Processes(data.folder, settings) as processes:
            url = processes.start("api").url
            for i in range(1 if quick else 3):
                seconds = asyncio.run(_burst(url, secret))
                report.add(f"burst {i + 1}", *(float(np.percentile(seconds, q)) * 1e3 for q in (50, 95)), unit="ms")
                report.add("  answered 200", len(seconds), unit="requests", least=REQUESTS)
    return report


async def _burst(url: str, secret: str) -> list[float]:
    """Seconds of each request that was answered with 200."""
    request = f"GET /v1/profiles HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {secret}\r\n\r\n".encode()
    address, left = urlsplit(url), iter(range(REQUESTS))
    seconds: list[float] = []

    async def ask_in_turn() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for _ in left:
            began = time.perf_counter()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
            seconds.extend([time.perf_counter() - began] if head.split(" ", 2)[1] == "200" else [])
        writer.close()

    await asyncio.gather(*(ask_in_turn() for _ in range(PARALLEL)))
    return seconds


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    run(given.quick).show(given.out)
