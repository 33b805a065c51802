"""Streams carry chunks from an engine's thread to a thread or an event loop, and tell when nobody listens."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from alignez_core.engines.base import StreamChunk
from alignez_core.engines.common.streams import QueuedStream, StreamWriter, deliver
from alignez_core.errors import EngineClosed

LAST = StreamChunk("end", finish_reason="stop")


def texts(stream: QueuedStream) -> list[str]:
    return [chunk.text for chunk in stream]


async def texts_async(stream: QueuedStream) -> list[str]:
    return [chunk.text async for chunk in stream]


def push_later(writer: StreamWriter, *chunks: StreamChunk, pause_s: float = 0.002) -> None:
    def run() -> None:
        for chunk in chunks:
            time.sleep(pause_s)
            writer.push(chunk)

    threading.Thread(target=run, daemon=True).start()


def test_chunks_arrive_in_order_in_a_thread_and_in_a_loop() -> None:
    chunks = [*[StreamChunk(str(i)) for i in range(20)], LAST]
    expected = [chunk.text for chunk in chunks]
    for pause_s in (0.0, 0.001):
        for read in (texts, lambda stream: asyncio.run(texts_async(stream))):
            writer = StreamWriter()
            push_later(writer, *chunks, pause_s=pause_s)
            assert read(QueuedStream(writer)) == expected


def test_an_error_comes_after_the_chunks_before_it() -> None:
    for read in (texts, lambda stream: asyncio.run(texts_async(stream))):
        writer = StreamWriter()
        writer.push(StreamChunk("a"))
        writer.fail(EngineClosed("closed"))
        writer.push(StreamChunk("late"))
        with pytest.raises(EngineClosed):
            read(QueuedStream(writer))


def test_a_stream_that_its_reader_closed_ends_without_an_error() -> None:
    writer = StreamWriter()
    stream = QueuedStream(writer)
    stream.close()
    writer.fail(EngineClosed("a request that is cancelled says so"))
    assert texts(stream) == []


def test_queued_chunks_cost_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        writers = [StreamWriter() for _ in range(5)]
        loop = asyncio.get_running_loop()
        calls = 0
        original = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*args, **kwargs)

        readers = [asyncio.create_task(texts_async(QueuedStream(writer))) for writer in writers]
        await asyncio.sleep(0)
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        deliver([(writer, StreamChunk("a")) for writer in writers])
        deliver([(writer, LAST) for writer in writers])
        assert await asyncio.gather(*readers) == [["a", "end"]] * 5
        return calls

    assert asyncio.run(main()) == 1


def test_a_timeout_while_waiting_leaves_the_stream_usable() -> None:
    async def main() -> list[str]:
        writer = StreamWriter()
        reader = aiter(QueuedStream(writer))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(reader), 0.01)
        assert not writer.closed
        deliver([(writer, StreamChunk("a")), (writer, LAST)])
        return [chunk.text async for chunk in reader]

    assert asyncio.run(main()) == ["a", "end"]


def test_closing_ends_the_reader_and_tells_the_engine_once() -> None:
    told: list[str] = []
    writer = StreamWriter()
    stream = QueuedStream(writer, lambda: told.append("closed"))
    threading.Timer(0.01, stream.close).start()
    assert texts(stream) == []
    stream.close()
    assert (told, writer.closed) == (["closed"], True)


def test_closing_from_another_thread_wakes_an_event_loop() -> None:
    async def main() -> list[str]:
        stream = QueuedStream(StreamWriter())
        threading.Timer(0.01, stream.close).start()
        return await texts_async(stream)

    assert asyncio.run(main()) == []


def test_leaving_the_loop_early_cancels() -> None:
    writer = StreamWriter()
    writer.push(StreamChunk("a"))
    stream = QueuedStream(writer)
    for _ in stream:
        break
    assert writer.closed


def test_dropping_an_unread_stream_cancels() -> None:
    writer = StreamWriter()
    QueuedStream(writer)
    assert writer.closed


def test_a_finished_stream_is_not_reported_as_cancelled() -> None:
    told: list[str] = []
    writer = StreamWriter()
    writer.push(LAST)
    stream = QueuedStream(writer, lambda: told.append("closed"))
    assert texts(stream) == ["end"]
    del stream
    assert told == []


def test_pushing_to_a_loop_that_is_gone_does_not_raise() -> None:
    writer = StreamWriter()
    stream = QueuedStream(writer)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(aiter(stream)), 0.01)

    asyncio.run(give_up())
    writer.push(StreamChunk("a"))
    writer.push(LAST)
