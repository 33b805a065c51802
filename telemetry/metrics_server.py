"""Serves the Prometheus metrics of a process (API, worker or relay) on a separate port, and whether it is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

#: Answers 200 or 503 to a liveness probe; every other path is the metrics.
ALIVE_PATH = "/alive"

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class MetricsServer:
    """Serves one registry over HTTP in a daemon thread until stopped."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = int(server.server_port)

    @classmethod
    def start(
        cls, registry: CollectorRegistry, host: str, port: int, alive: Callable[[], bool] | None = None
    ) -> MetricsServer:
        """Starts the thread.

        Args:
            port: 0 is a free one.
            alive: makes `/alive` answer, with 200 or 503.
        Raises: OSError: the port is taken.
        """
        server, thread = start_http_server(port, addr=host, registry=registry)
        app = server.get_app()
        if app is not None:
            plain = _as_plain_text(app)
            server.set_app(plain if alive is None else _with_liveness(plain, alive))
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


def _with_liveness(app: WSGIApplication, alive: Callable[[], bool]) -> WSGIApplication:
    """The app, with an answer of its own at `/alive`."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != ALIVE_PATH:
            return app(environ, start_response)
        status, word = ("200 OK", b"alive\n") if alive() else ("503 Service Unavailable", b"stuck\n")
        start_response(status, [("Content-Type", "text/plain")])
        return [word]

    return answer
