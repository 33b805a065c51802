"""Prometheus metrics of one API process, in their own registry and on their own port.

Generation metrics bear vLLM's names behind our prefix (`alignez:time_to_first_token_seconds`, …), so that dashboards
made for vLLM need only the prefix changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_LONG_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


class Metrics:
    """All collectors of one process. Label values are bounded: routes, not paths; never a tenant or a profile."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "alignez_http_requests", "HTTP requests by route and status.", ["method", "route", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "alignez_http_request_duration_seconds", "Time to the last byte.", ["method", "route"], registry=r,
            buckets=_FAST_S,
        )  # fmt: skip
        self.first_token = Histogram(
            "alignez:time_to_first_token_seconds", "From the request's arrival to its first token.", registry=r,
            buckets=_FAST_S,
        )  # fmt: skip
        self.inter_token = Histogram(
            "alignez:inter_token_latency_seconds", "Mean time between the tokens of one answer.", registry=r,
            buckets=_FAST_S,
        )  # fmt: skip
        self.end_to_end = Histogram(
            "alignez:e2e_request_latency_seconds", "From arrival to the last token.", registry=r, buckets=_LONG_S
        )
        self.running = Gauge("alignez:num_requests_running", "Answers that are being generated.", registry=r)
        self.waiting = Gauge("alignez:num_requests_waiting", "Answers that wait for their first token.", registry=r)
        self.prompt_tokens = Counter("alignez:prompt_tokens", "Prompt tokens read.", registry=r)
        self.generation_tokens = Counter("alignez:generation_tokens", "Tokens generated.", registry=r)
        self.answer_tokens = Histogram(
            "alignez:request_generation_tokens", "Tokens per answer.", registry=r, buckets=_TOKENS
        )
        self.finished = Counter(
            "alignez:request_success", "Answers by how they ended.", ["finished_reason"], registry=r
        )
        self.edits = Counter(
            "alignez_edits", "Answers by the edit they ran with: none, global or conditional.", ["kind"], registry=r
        )
        self.personalise_seconds = Histogram(
            "alignez_personalise_seconds", "From a profile's name to its edit: database, embedding, directions.",
            registry=r, buckets=_FAST_S,
        )  # fmt: skip
        self.plan_cache = Counter("alignez_plan_cache", "Look-ups of compiled edits.", ["outcome"], registry=r)
        self.auth_cache = Counter("alignez_auth_cache", "Look-ups of API keys.", ["outcome"], registry=r)
        self.engine_ready = Gauge("alignez_engine_ready", "1 when the model is loaded.", registry=r)


class MetricsServer:
    """Serves one registry over HTTP in a daemon thread until stopped."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = int(server.server_port)

    @classmethod
    def start(cls, metrics: Metrics, host: str, port: int) -> MetricsServer:
        """Raises: OSError: the port is taken."""
        server, thread = start_http_server(port, addr=host, registry=metrics.registry)
        return cls(server, thread)

    def stop(self) -> None:
        """Frees the port."""
        stop: Callable[[], None] = self._server.shutdown
        stop()
        self._server.server_close()
        self._thread.join(timeout=5)
