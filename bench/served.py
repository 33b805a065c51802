"""What the measurements over HTTP share: an app served as deployed, and a client in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from api.server import Server, server_config


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """Serves an app of `create_app` under uvicorn in a thread; the port."""
    server = Server(server_config(app, app.state.services.settings), app.state.services)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


class LineClient:
    """A module run as a process that answers each line of JSON with one.

    Args:
        module: as `python -m` takes it. arguments: of its command line.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def ask(self, content: Any) -> Any:
        """Its answer. Raises: ValueError: it ended; its own error is on stderr."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the client has no pipes")
        stdin.write(json.dumps(content) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())
