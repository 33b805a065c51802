"""Serves the Prometheus metrics of a process (API, worker or relay) on a separate port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


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
        app = server.get_app()
        if app is not None:
            server.set_app(_as_plain_text(app))
        return cls(server, thread)

    def stop(self) -> None:
        """Frees the port."""
        stop: Callable[[], None] = self._server.shutdown
        stop()
        self._server.server_close()
        self._thread.join(timeout=5)


def _as_plain_text(app: WSGIApplication) -> WSGIApplication:
    """The app without OpenMetrics, in which prometheus-client 0.26 writes `alignez:…` as `alignez_…` (its issue 1177).

    Prometheus 2 requests OpenMetrics first, and would store names that our dashboards and alerts do not use.
    """

    def plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return app({**environ, "HTTP_ACCEPT": "text/plain; version=0.0.4"}, start_response)

    return plain
