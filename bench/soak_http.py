"""The soak's HTTP/1.1 client on asyncio streams: kept-alive connections, whole or streamed replies, early goodbyes.

By hand, because a client library would take more of the shared cores than the server's own HTTP does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["answered", "refused", "left", "stuck", "broken"]


@dataclass(frozen=True)
class Reply:
    """What came of one generation request.

    Args:
        outcome: "answered" whole; "refused" with a status that is not 200, or by an error event; "left" by us, as
            planned; "stuck": not done by its deadline; "broken": the connection was.
        status: HTTP status, 0 when there was none.
        text, finish: of the only choice; finish is None for a part of an answer.
        applied: the reply's `alignez` object, None when the reply did not get so far.
        error: what a reply that is not an answer said.
        first_s, total_s: seconds from sending to the first text (None without any, or not streamed) and to the end.
    """

    outcome: Outcome
    status: int
    text: str = ""
    finish: str | None = None
    applied: Mapping[str, Any] | None = None
    error: str = ""
    first_s: float | None = None
    total_s: float = 0.0


class Connection:
    """One kept-alive connection of one client, opened again whenever it was lost or left.

    Args:
        port: of the API on this machine.
        deadline_s: a request that takes longer is stuck.
    """

    def __init__(self, port: int, deadline_s: float) -> None:
        self._port = port
        self._deadline_s = deadline_s
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, key: str, body: Mapping[str, Any], leave_after: int | None = None) -> Reply:
        """Sends a generation request and reads its reply.

        Args:
            leave_after: close the connection once so many bytes of the answer have come.
        """
        started = time.perf_counter()
        exchange = _Exchange(bool(body.get("stream")), leave_after, started)
        try:
            async with asyncio.timeout(self._deadline_s):
                reader, writer = await self._open()
                writer.write(_encode(path, key, body))
                whole = await exchange.read(reader)
            if not whole:
                self.close()
            return exchange.reply("answered" if whole else "left")
        except TimeoutError:
            self.close()
            return exchange.reply("stuck")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            self.close()
            return exchange.reply("broken", repr(error))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hangs up."""
        if self._pair is not None:
            self._pair[1].close()
            self._pair = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._pair is None or self._pair[0].at_eof():
            self.close()
            self._pair = await asyncio.open_connection("127.0.0.1", self._port)
        return self._pair


class _Exchange:
    """The reply of one request as far as it has come."""

    def __init__(self, streamed: bool, leave_after: int | None, started: float) -> None:
        self._streamed = streamed
        self._leave_after = leave_after
        self._started = started
        self._status = 0
        self._parts: list[bytes] = []
        self._first_s: float | None = None

    async def read(self, reader: asyncio.StreamReader) -> bool:
        """Whether the reply was read whole; False when the request's own limit made us leave."""
        head = await reader.readuntil(b"\r\n\r\n")
        self._status = int(head.split(b" ", 2)[1])
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if b"chunked" not in fields.get(b"transfer-encoding", b""):
            self._parts.append(await reader.readexactly(int(fields.get(b"content-length", b"0"))))
            return True
        size = 0
        while length := int(await reader.readuntil(b"\r\n"), 16):
            block = (await reader.readexactly(length + 2))[:-2]
            self._parts.append(block)
            if self._first_s is None and _has_text(block):
                self._first_s = time.perf_counter() - self._started
            size += length
            if self._leave_after is not None and size >= self._leave_after:
                return False
        await reader.readexactly(2)
        return True

    def reply(self, outcome: Outcome, error: str = "") -> Reply:
        """The reply, whatever came."""
        total_s = time.perf_counter() - self._started
        content = b"".join(self._parts)
        if outcome == "answered" and self._status != 200:
            return Reply("refused", self._status, error=content.decode(errors="replace")[:600], total_s=total_s)
        events = self._events(content) if self._streamed else [json.loads(content)] if content else []
        text, finish, applied = "", None, None
        for event in events:
            if "error" in event:
                return Reply("refused", self._status, text, error=json.dumps(event["error"])[:600], total_s=total_s)
            applied = event.get("alignez", applied)
            for choice in event["choices"]:
                text += _text_of(choice)
                finish = choice["finish_reason"] or finish
        if outcome == "answered" and finish is None:
            outcome, error = "broken", "the reply ended without a finish_reason"
        return Reply(outcome, self._status, text, finish, applied, error, self._first_s, total_s)

    def _events(self, content: bytes) -> list[dict[str, Any]]:
        whole = content[: content.rfind(b"\n\n") + 2] if b"\n\n" in content else b""
        lines = (line for line in whole.split(b"\n\n") if line.startswith(b"data: ") and line != b"data: [DONE]")
        return [json.loads(line[6:]) for line in lines]


def _has_text(block: bytes) -> bool:
    return b'"content":"' in block.replace(b'"content":""', b"") or b'"text":"' in block.replace(b'"text":""', b"")


def _text_of(choice: Mapping[str, Any]) -> str:
    part = choice.get("delta") or choice.get("message")
    found = choice.get("text") if part is None else part.get("content")
    return found or ""


def _encode(path: str, key: str, body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
