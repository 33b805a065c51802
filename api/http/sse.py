"""Server-sent events: their encoding, and the response that streams them.

This is the hot path. `EventPattern` encodes the constant part of a chunk once per request, one `send` carries every
token that has arrived, and a client that disconnects closes the engine's streams at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": keep-alive\n\n"


def dumps(value: object) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def event(data: object, *, name: str | None = None, event_id: int | str | None = None) -> bytes:
    """One server-sent event with a JSON body."""
    head = "" if event_id is None else f"id: {event_id}\n"
    if name is not None:
        head += f"event: {name}\n"
    return f"{head}data: {dumps(data)}\n\n".encode()


class EventPattern:
    """The events of one choice; everything except the text is encoded in advance.

    Args:
        envelope: the chunk's constant fields (id, object, created, model, …).
        index: of the choice.
        chat: True puts the text into `delta` (chat), False into `text` (completions).
    """

    __slots__ = ("_between", "_close", "_open", "_wrap", "chat")

    def __init__(self, envelope: Mapping[str, Any], index: int, *, chat: bool) -> None:
        head = dumps({**envelope, "choices": []})[: -len("]}")]
        self.chat = chat
        field = '"delta":{"content":' if chat else '"text":'
        self._open = f'data: {head}{{"index":{index},'
        self._wrap = f"{self._open}{field}"
        self._between = "}" if chat else ""
        self._close = ',"logprobs":null,"finish_reason":null}]}\n\n'

    def text(self, text: str) -> str:
        """The event of a text delta."""
        return f"{self._wrap}{encode_basestring_ascii(text)}{self._between}{self._close}"

    def role(self) -> str:
        """The first event of a chat choice, which names the role."""
        return f'{self._open}"delta":{{"role":"assistant","content":""}}{self._close}'

    def full(
        self,
        text: str,
        finish_reason: str | None,
        logprobs: Mapping[str, Any] | None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """An event with log-probabilities, a finish reason, or further fields of the chunk (`alignez`)."""
        delta: str = dumps({"content": text} if text or finish_reason is None else {})
        body = f'"delta":{delta}' if self.chat else f'"text":{encode_basestring_ascii(text)}'
        tail = "".join(f",{dumps(key)}:{dumps(value)}" for key, value in (extra or {}).items())
        return f'{self._open}{body},"logprobs":{dumps(logprobs)},"finish_reason":{dumps(finish_reason)}}}]{tail}}}\n\n'


class EventStream(Response):
    """A streaming response that stops its source as soon as the client disconnects.

    Starlette's `StreamingResponse` notices a closed connection only when a write fails; until then the request would
    keep its place in the batch. This response listens for the disconnect while it writes.

    The headers are sent with the first block, which may be empty, or with the first heartbeat. An error before that is
    raised, so that the client gets its HTTP status.

    Args:
        blocks: the body; an error that it raises after the first byte ends the stream with `on_error`'s event.
        on_gone: called when the client disconnects, and at the end; must make `blocks` end.
        on_error: encodes an error as the last event.
        heartbeat_s: seconds without a block after which a comment is sent, which clients ignore.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        blocks: AsyncGenerator[bytes, None],
        *,
        on_gone: Callable[[], None],
        on_error: Callable[[Exception], bytes],
        heartbeat_s: float,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._blocks = blocks
        self._on_gone = on_gone
        self._on_error = on_error
        self._heartbeat_s = heartbeat_s
        # nginx would buffer the stream; "no-transform" keeps proxies from compressing it.
        self.init_headers({"cache-control": "no-store, no-transform", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = _Sender(send, self.raw_headers)
        async with watching(receive, self._on_gone) as gone:
            heartbeats = asyncio.ensure_future(_keep_alive(out, self._heartbeat_s))
            try:
                try:
                    async for block in self._blocks:
                        if gone.is_set():
                            break
                        await out.send(block)
                except OSError:
                    gone.set()  # servers of ASGI 2.4 raise when the client is gone
                except Exception as error:
                    if not out.begun:
                        raise
                    await out.send(self._on_error(error))
                if not gone.is_set():
                    await out.send(b"", more=False)
            finally:
                self._on_gone()
                heartbeats.cancel()
                await self._blocks.aclose()


class _Sender:
    """Sends the blocks of one response, and its headers before the first."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._turn = asyncio.Lock()  # a heartbeat must not overtake the headers
        self.begun = False
        self._ended = False
        self.last = time.monotonic()

    async def send(self, block: bytes, *, more: bool = True) -> None:
        self.last = time.monotonic()
        async with self._turn:
            if self._ended:
                return
            self._ended = not more
            if not self.begun:
                self.begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            if block or not more:
                await self._send({"type": "http.response.body", "body": block, "more_body": more})


async def _keep_alive(out: _Sender, interval_s: float) -> None:
    while True:
        await asyncio.sleep(max(0.0, out.last + interval_s - time.monotonic()))
        if time.monotonic() - out.last >= interval_s:
            with contextlib.suppress(OSError):  # the client is gone; `watching` reports it
                await out.send(HEARTBEAT)


@contextlib.asynccontextmanager
async def watching(receive: Receive, on_gone: Callable[[], None]) -> AsyncIterator[asyncio.Event]:
    """Calls `on_gone` if the client disconnects within the context; the event is set then."""
    gone = asyncio.Event()
    watcher = asyncio.ensure_future(_watch(receive, gone, on_gone))
    try:
        yield gone
    finally:
        watcher.cancel()


async def _watch(receive: Receive, gone: asyncio.Event, on_gone: Callable[[], None]) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            gone.set()
            on_gone()
            return


def join(events: Iterable[str]) -> bytes:
    """Several events as one block."""
    return "".join(events).encode("ascii")
