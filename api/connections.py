"""Limits per connection and process: time for headers, bodies and unread answers, and the number of connections."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from api.http.security import Header, security_headers

_CLOSING = ((b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"))


@dataclass(frozen=True)
class ConnectionLimits:
    """Seconds that a client has for a request's headers and for its body, and the most connections of the process."""

    header_s: float
    body_s: float
    connections: int


def limited_protocol(limits: ConnectionLimits) -> type[H11Protocol]:
    """uvicorn's protocol with `limits`: uvicorn itself waits for ever for headers, bodies and readers."""

    class Limited(_LimitedProtocol):
        _limits = limits

    return Limited


class _LimitedProtocol(H11Protocol):
    _limits: ConnectionLimits
    #: The current wait's limit in seconds, and its request; `_deadline` belongs to this wait.
    _wait: tuple[float, RequestResponseCycle | None] | None = None
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(503, b"all connections are in use\r\n", (b"retry-after", b"2"))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP; uvicorn's own response has no security headers."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, msg.encode("ascii"))
        else:
            self.transport.close()  # the request's response has begun or has ended

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._limits.body_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _refuse(self, status: int, text: bytes, *more: Header) -> None:
        """Sends a response that no app has made, and closes the connection."""
        length = (b"content-length", str(len(text)).encode())
        headers = [*_CLOSING, length, *more, *security_headers(self.scheme or "http")]
        reason = HTTPStatus(status).phrase.encode()
        for event in (h11.Response(status_code=status, headers=headers, reason=reason), h11.Data(data=text)):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Starts a deadline when the connection begins to wait for something else of the client."""
        wait = self._waits_for()
        if wait == self._wait:
            return
        self._wait = wait
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(wait[0], self.transport.abort) if wait is not None else None

    def _waits_for(self) -> tuple[float, RequestResponseCycle | None] | None:
        if self.transport.is_closing():
            return None
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            # `RequestContext` answers a slow body with 408 first. This closes what sends on after its answer.
            return self._limits.body_s + 1, self.cycle
        if state is not h11.IDLE or self.timeout_keep_alive_task is not None:
            return None
        # uvicorn's own timer for idle connections ends with the first byte, and with the rest of a refused body.
        idle = self.cycle is not None and not self.conn.trailing_data[0]
        return self.timeout_keep_alive if idle else self._limits.header_s, self.cycle
