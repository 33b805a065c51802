"""Security headers of every response, and the content policies of the HTML pages."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]


def content_policy(sources: Mapping[str, str]) -> str:
    """A Content-Security-Policy under which a page loads nothing but `sources`, and no other page may frame it.

    Args:
        sources: directive → allowed sources, as "style-src" → "'self'".
    """
    listed = [f"{directive} {allowed}" for directive, allowed in sources.items()]
    return "; ".join(["default-src 'none'", *listed, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])


def inline_source(text: str) -> str:
    """The source of a policy that allows the one inline script or style with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", content_policy({}).encode()),
    (b"cache-control", b"no-store"),
)
#: One year; browsers ignore it on a connection without TLS. Subdomains are not this server's to decide about.
_UNDER_TLS: tuple[Header, ...] = (*_ALWAYS, (b"strict-transport-security", b"max-age=31536000"))


def security_headers(scheme: str) -> tuple[Header, ...]:
    """The headers of a response that has none of its own. Args: scheme: "http" or "https"."""
    return _UNDER_TLS if scheme == "https" else _ALWAYS


class SecurityHeaders:
    """Adds the security headers to every response; a header that the response has already is kept.

    The scheme is "https" if this server has a certificate, or if a proxy that uvicorn trusts said so.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    # Neither this function nor `secured` is a coroutine: a stream sends thousands of messages through them.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        added = security_headers(scope["scheme"])

        def secured(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                own = {name for name, _ in headers}
                message["headers"] = [*headers, *(header for header in added if header[0] not in own)]
            return send(message)

        return self._app(scope, receive, secured)
