"""Middleware of every request: id, body limits, metrics and log line. Plain ASGI, to keep the cost of streams low."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from threading import Event
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode

from api.http.errors import BodyTooLarge, BodyTooSlow, problem_of, render_error
from api.metrics import Metrics
from telemetry.tracing import Tracing, parent_context

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
log = structlog.get_logger("api")


class RequestContext:
    """Gives each request an id: in `scope["state"]`, a response header, the log context, the trace and error bodies."""

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        max_body_bytes: int,
        body_timeout_s: float,
        tracing: Tracing,
        draining: Event,
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._draining = draining
        self._metrics = metrics
        self._max_body = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id"))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["started"] = started
        id_header = (b"x-request-id", request_id.encode())
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
                if self._draining.is_set():
                    # The client must open its next connection to another process.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        span = self._span(scope["path"], headers.get(b"traceparent"), request_id)
        with trace.use_span(span, end_on_exit=True):
            try:
                await self._limited(scope, receive, send_with_id, headers)
            except Exception as error:
                # Starlette's outermost handler would respond without the id and raise the error again.
                log.error("unexpected_error", exc_info=error)
                if status is not None:
                    raise  # the response has begun, so the server can only close the connection
                await render_error(scope["path"], problem_of(error), request_id)(scope, receive, send_with_id)
            finally:
                self._record(scope, status or 500, time.perf_counter() - started, span)

    async def _limited(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[bytes, bytes]) -> None:
        """Runs the app; refuses a body whose declared or counted size is over the limit, or that arrives too slowly."""
        length = headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._max_body):
            await self._too_large(scope, receive, send)
            return
        if b"transfer-encoding" not in headers and int(length or 0) == 0:
            await self._app(scope, receive, send)
            return
        limit, limit_s = self._max_body, self._body_timeout_s
        deadline = asyncio.get_running_loop().time() + limit_s
        seen, complete = 0, False

        async def bounded() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise BodyTooSlow(limit_s) from error
            seen += len(message.get("body", b""))
            if seen > limit:
                raise BodyTooLarge(limit)
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, bounded, send)

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = render_error(scope["path"], problem_of(BodyTooLarge(self._max_body)), scope["state"]["request_id"])
        response.headers["connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)

    def _span(self, path: str, traceparent: bytes | None, request_id: str) -> Span:
        """The request's span, a child of the caller's if it sent one. Probes have none."""
        if not self._tracing.enabled or path in _PROBES:
            return INVALID_SPAN
        parent = parent_context(traceparent.decode("latin-1") if traceparent else None)
        return self._tracing.tracer.start_span(
            "request", parent, SpanKind.SERVER, {"alignez.request_id": request_id, "url.path": path}
        )

    def _record(self, scope: Scope, status: int, seconds: float, span: Span) -> None:
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        # Probes arrive every few seconds and would dominate the log.
        write = log.debug if route in _PROBES and status < 500 else log.info
        write("request", method=method, route=route, status=status, ms=round(seconds * 1e3, 2))
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            )
            if status >= 500:
                span.set_status(StatusCode.ERROR)


_PROBES = frozenset({"/health", "/ready"})
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


def _request_id(given: bytes | None) -> str:
    """The caller's id if it is safe in headers and logs, else a new one."""
    if given is not None and _GIVEN_ID.fullmatch(given):
        return given.decode()
    return f"req_{secrets.token_hex(12)}"
