"""The client of `bench.scale`, a process of its own: `python -m bench.scale_client PORT`."""

from __future__ import annotations

import http.client
import json
import sys
import time
from typing import Any


def main(port: int) -> None:
    """Answers lines of requests from stdin with their seconds, until it ends."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for line in sys.stdin:
        print(json.dumps([_seconds(connection, *request) for request in json.loads(line)]), flush=True)


def _seconds(connection: http.client.HTTPConnection, key: str, method: str, path: str, body: Any) -> float:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    content = None if body is None else json.dumps(body)
    started = time.perf_counter()
    connection.request(method, path, content, headers)
    reply = connection.getresponse()
    text = reply.read()
    taken = time.perf_counter() - started
    if reply.status != 200:
        raise RuntimeError(f"{method} {path}: {reply.status} {text[:500]!r}")
    return taken


if __name__ == "__main__":
    main(int(sys.argv[1]))
