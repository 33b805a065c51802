"""From an engine's token streams to batches of chunks, at a pace that leaves the engine its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from api.http.pace import Pace

if TYPE_CHECKING:  # the port imports torch, which a control-plane process never loads
    from alignez_core.engines.base import StreamChunk, TokenStream

#: Chunks of one moment, each with the index of its stream.
Batch = list[tuple[int, "StreamChunk"]]


@runtime_checkable
class _Prefetched(Protocol):
    """An iterator that can say what has arrived already; engines' own streams do, others are read one by one."""

    def ready(self) -> list[StreamChunk]: ...


async def batches(streams: Sequence[TokenStream], pace: Pace) -> AsyncIterator[Batch]:
    """Everything that has arrived, as it arrives, until all streams have ended.

    An error of one stream closes all and is raised.
    """
    pace.enter()
    try:
        source = _single(streams[0], pace) if len(streams) == 1 else _merged(streams, pace)
        async for batch in source:
            yield batch
    finally:
        pace.leave()
        for stream in streams:
            stream.close()


async def _single(stream: TokenStream, pace: Pace) -> AsyncIterator[Batch]:
    iterator = aiter(stream)
    ready = iterator.ready if isinstance(iterator, _Prefetched) else None
    next_send = 0.0
    async for chunk in iterator:
        batch: Batch = [(0, chunk)]
        if ready is not None:
            if next_send:
                wait = next_send - time.perf_counter()
                if wait > 0 and chunk.finish_reason is None:
                    await asyncio.sleep(wait)
            batch.extend((0, more) for more in ready())
            next_send = time.perf_counter() + pace.gap_s
        yield batch


async def _merged(streams: Sequence[TokenStream], pace: Pace) -> AsyncIterator[Batch]:
    """Several streams of one response (choices, columns): one reader each, one queue."""
    arrived: Batch = []
    failures: list[BaseException] = []
    wake = asyncio.Event()

    async def read(index: int, stream: TokenStream) -> None:
        try:
            async for chunk in stream:
                arrived.append((index, chunk))
                wake.set()
        except Exception as error:
            failures.append(error)
        finally:
            wake.set()

    readers = [asyncio.ensure_future(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        while True:
            await wake.wait()
            wake.clear()
            batch, arrived[:] = list(arrived), []
            if batch:
                yield batch
            if failures:
                raise failures[0]
            if not arrived and all(reader.done() for reader in readers):
                return
            if pace.gap_s:
                await asyncio.sleep(pace.gap_s)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
