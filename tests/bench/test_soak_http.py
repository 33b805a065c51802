"""The soak's HTTP client against a server that answers by hand."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bench.soak_http import Connection, Reply

APPLIED = {"profile": "cheerful", "version": 1, "sha256": "aa"}
WHOLE = {"choices": [{"message": {"content": "Yay!"}, "finish_reason": "stop"}], "alignez": APPLIED}


def chunked(*events: Any, end: bool = True) -> bytes:
    blocks = [
        f"data: {event if isinstance(event, str) else json.dumps(event, separators=(',', ':'))}\n\n" for event in events
    ]
    body = b"".join(b"%x\r\n%s\r\n" % (len(block), block.encode()) for block in blocks)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + body + (b"0\r\n\r\n" if end else b"")


def plain(status: int, body: Any) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(content), content)


def delta(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text} if text else {}, "finish_reason": finish}]}


async def ask(answers: list[bytes | None], leave_after: int | None = None, stream: bool = True) -> list[Reply]:
    """One request after the other on one client; None: the server says nothing more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                answer = answers.pop(0)
                if answer is None:
                    await reader.read()
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = Connection(server.sockets[0].getsockname()[1], deadline_s=0.5)
    replies = []
    async with server:
        for _ in range(len(answers)):
            replies.append(await connection.ask("/v1/chat/completions", "key", {"stream": stream}, leave_after))
        connection.close()
        await asyncio.sleep(0.05)
    return replies


def test_a_stream_is_put_together_and_the_connection_kept() -> None:
    last = {**delta("", "stop"), "alignez": APPLIED}
    stream = chunked(delta(""), delta("Yay"), delta("!"), last, {"choices": [], "usage": {}}, "[DONE]")
    first, second = asyncio.run(ask([stream, stream]))
    assert (first.outcome, first.text, first.finish, first.applied) == ("answered", "Yay!", "stop", APPLIED)
    assert first.first_s is not None
    assert second.text == "Yay!"


def test_a_whole_answer() -> None:
    (reply,) = asyncio.run(ask([plain(200, WHOLE)], stream=False))
    assert (reply.outcome, reply.text, reply.finish, reply.applied) == ("answered", "Yay!", "stop", APPLIED)


def test_a_client_that_hangs_up_keeps_what_it_saw_and_comes_back() -> None:
    stream = chunked(delta("Yay"), delta(", hiking"), end=False)
    left, again = asyncio.run(ask([stream, plain(404, {"error": {"message": "gone"}})], leave_after=1))
    assert (left.outcome, left.text, left.finish) == ("left", "Yay", None)
    assert (again.outcome, again.status) == ("refused", 404)
    assert "gone" in again.error


def test_an_error_event_after_the_first_byte_is_a_refusal() -> None:
    (reply,) = asyncio.run(ask([chunked(delta("Yay"), {"error": {"code": "engine_closed"}}, "[DONE]")]))
    assert reply.outcome == "refused"
    assert "engine_closed" in reply.error


@pytest.mark.parametrize("answer", [None, chunked(delta("Yay"), end=False)])
def test_an_answer_that_does_not_end_is_stuck(answer: bytes | None) -> None:
    # The server waits for a second request that does not come.
    replies = asyncio.run(ask([answer, None]))
    assert replies[0].outcome == "stuck"


def test_a_stream_without_an_end_is_broken() -> None:
    (reply,) = asyncio.run(ask([chunked(delta("Yay"), "[DONE]")]))
    assert reply.outcome == "broken"
