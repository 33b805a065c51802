"""Serves the Prometheus metrics of a process (API, worker or relay) on a separate port, over HTTP or HTTPS.

The port also says whether the process is alive.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from telemetry.tls import TlsFiles

#: Answers 200 or 503 to a liveness probe; every other path is the metrics.
ALIVE_PATH = "/alive"

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger("metrics")

#: Longest wait for a client, in a thread of its own.
_CLIENT_TIMEOUT_S = 15.0


class MetricsServer:
    """Serves one registry in a daemon thread until stopped."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port = int(server.server_port)

    @classmethod
    def start(
        cls,
        registry: CollectorRegistry,
        host: str,
        port: int,
        *,
        tls: TlsFiles | None = None,
        alive: Callable[[], bool] | None = None,
    ) -> MetricsServer:
        """Starts the thread.

        Args:
            port: 0 is a free one.
            tls: HTTPS alone is served.
            alive: makes `/alive` answer, with 200 or 503.
        Raises: OSError: the port is taken.
        """

        class Server(_Server):
            context = tls.context() if tls is not None else None
            address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]

        plain = _as_plain_text(make_wsgi_app(registry))
        app = plain if alive is None else _with_liveness(plain, alive)
        return cls(make_server(host, port, app, Server, _Handler))

    def stop(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, in which the TLS handshake runs too.

    prometheus-client 0.26 accepts and shakes hands in one thread: a client that sends nothing would stop every scrape.
    """

    daemon_threads = True
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_CLIENT_TIMEOUT_S)
        if self.context is None:
            super().finish_request(request, client_address)
            return
        with self.context.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs a broken connection, in place of a traceback on standard error."""
        log.debug("metrics_connection_failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Logs no requests."""


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
