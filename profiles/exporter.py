"""Serves one process's Prometheus metrics on a port of their own: API, worker and relay do it alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server


class MetricsServer:
    """Serves one registry over HTTP in a daemon thread until stopped."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = int(server.server_port)

    @classmethod
    def start(cls, registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
        """Args: port: 0 is a free one. Raises: OSError: the port is taken."""
        server, thread = start_http_server(port, addr=host, registry=registry)
        return cls(server, thread)

    def stop(self) -> None:
        """Frees the port."""
        stop: Callable[[], None] = self._server.shutdown
        stop()
        self._server.server_close()
        self._thread.join(timeout=5)
