"""Token streams, which carry chunks from an engine's thread to a reader in a thread or an event loop.

An engine holds the producing half (`StreamWriter`), a caller the consuming half (`QueuedStream`). The halves are apart
so that a caller who drops the stream, without closing it, lets it be collected, which cancels the row.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Protocol

from alignez_core.engines.base import StreamChunk

#: An event loop, and what it waits for there.
Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class ChunkWriter(Protocol):
    """Destination of one row's chunks: a stream of this process, or the channel to another."""

    @property
    def closed(self) -> bool:
        """True once the reader is gone; the engine then drops the row."""
        ...

    def put(self, chunk: StreamChunk) -> Waiter | None:
        """Takes a chunk; returns whom to wake for it, so that one step's chunks wake each loop once (`deliver`)."""
        ...

    def fail(self, error: BaseException) -> None:
        """Ends the stream with an error."""
        ...


class StreamWriter:
    """The producing half. Every method is safe to call from any thread."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._chunks: deque[StreamChunk] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._waiter: Waiter | None = None

    @property
    def closed(self) -> bool:
        """True once the consumer is gone; the engine then drops the row."""
        return self._closed

    def push(self, chunk: StreamChunk) -> None:
        """Hands over one chunk; one with a finish reason ends the stream."""
        _wake([self.put(chunk)])

    def fail(self, error: BaseException) -> None:
        """Ends the stream: chunks pushed before are still read, then `error` is raised; nothing if nobody reads."""
        with self._ready:
            if self._ended or self._closed:
                return
            self._error, self._ended = error, True
            waiter = self._take_waiter()
        _wake([waiter])

    def put(self, chunk: StreamChunk) -> Waiter | None:
        """Hands over one chunk and leaves the waking to the caller."""
        with self._ready:
            if self._ended or self._closed:
                return None
            self._chunks.append(chunk)
            self._ended = chunk.finish_reason is not None
            return self._take_waiter()

    def _take_waiter(self) -> Waiter | None:
        waiter, self._waiter = self._waiter, None
        self._ready.notify_all()
        return waiter

    def _drain(self) -> tuple[list[StreamChunk], bool]:
        """Everything queued, and whether the stream is over after it. Call with the lock held."""
        chunks = list(self._chunks)
        self._chunks.clear()
        return chunks, self._ended or self._closed

    def _close(self) -> bool:
        with self._ready:
            first = not (self._closed or self._ended)
            self._closed = True
            self._chunks.clear()
            waiter = self._take_waiter()
        _wake([waiter])
        return first

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def deliver(pairs: Iterable[tuple[ChunkWriter, StreamChunk]]) -> None:
    """Pushes the chunks of one engine step, waking each event loop once for all of its streams."""
    _wake([writer.put(chunk) for writer, chunk in pairs])


class QueuedStream:
    """The consuming half: a `TokenStream`, to be iterated once, in a thread or in an event loop.

    Args:
        writer: the engine's half.
        on_close: called once if the stream is closed, or dropped, before its end. The garbage collector may be the one
            that drops it, so this must take no lock.
    """

    def __init__(self, writer: StreamWriter, on_close: Callable[[], None] | None = None) -> None:
        self._writer = writer
        self._on_close = on_close

    def __iter__(self) -> Iterator[StreamChunk]:
        return _SyncChunks(self)

    def __aiter__(self) -> AsyncIterator[StreamChunk]:
        return _AsyncChunks(self)

    def close(self) -> None:
        """Cancels the row. Safe to call twice and from any thread."""
        if self._writer._close() and self._on_close is not None:
            self._on_close()

    def __del__(self) -> None:
        self.close()


class _SyncChunks:
    def __init__(self, stream: QueuedStream) -> None:
        self._stream = stream
        self._buffer: deque[StreamChunk] = deque()
        self._over = False

    def __iter__(self) -> _SyncChunks:
        return self

    def __next__(self) -> StreamChunk:
        writer = self._stream._writer
        if not self._buffer and not self._over:
            with writer._ready:
                writer._ready.wait_for(lambda: writer._chunks or writer._ended or writer._closed)
                chunks, self._over = writer._drain()
            self._buffer.extend(chunks)
        if self._buffer and not writer.closed:
            return self._buffer.popleft()
        writer._raise_error()
        raise StopIteration

    def __del__(self) -> None:
        # A `break` drops the iterator while the caller may still hold the stream: nobody reads on, so cancel.
        self._stream.close()


class _AsyncChunks:
    # Not an async generator: those are finalised by the event loop at some later time, this one when it is dropped.
    # A cancelled wait (a timeout around `anext`) leaves the stream usable.
    def __init__(self, stream: QueuedStream) -> None:
        self._stream = stream
        self._buffer: deque[StreamChunk] = deque()
        self._over = False

    def __aiter__(self) -> _AsyncChunks:
        return self

    async def __anext__(self) -> StreamChunk:
        writer = self._stream._writer
        while not self._buffer and not self._over:
            with writer._ready:
                chunks, self._over = writer._drain()
                if not chunks and not self._over:
                    loop = asyncio.get_running_loop()
                    arrived = loop.create_future()
                    writer._waiter = (loop, arrived)
            if chunks or self._over:
                self._buffer.extend(chunks)
            else:
                await arrived
        if self._buffer and not writer.closed:
            return self._buffer.popleft()
        writer._raise_error()
        raise StopAsyncIteration

    def ready(self) -> list[StreamChunk]:
        """Takes the chunks that have arrived already, without waiting: a server sends them in one write."""
        writer = self._stream._writer
        with writer._ready:
            chunks, over = writer._drain()
        taken = [] if writer.closed else [*self._buffer, *chunks]
        self._buffer.clear()
        self._over = self._over or over
        return taken

    def __del__(self) -> None:
        self._stream.close()


def _wake(waiters: Iterable[Waiter | None]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        if waiter is not None:
            by_loop.setdefault(waiter[0], []).append(waiter[1])
    for loop, futures in by_loop.items():
        # A loop that was closed while its stream ran has nothing left to wake.
        if not loop.is_closed():
            try:
                loop.call_soon_threadsafe(_resolve, futures)
            except RuntimeError:
                if not loop.is_closed():
                    raise


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
