"""The loop thread: which tasks it cancels, and that it waits for their ends."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest

from alignez_core.engines.vllm.loop_thread import LoopThread


async def _forever(started: threading.Event, ends: list[str], name: str) -> None:
    try:
        started.set()
        await asyncio.Event().wait()
    finally:
        ends.append(name)


def test_own_tasks_are_cancelled_and_a_librarys_are_not() -> None:
    loop, ends = LoopThread(), list[str]()
    started = [threading.Event() for _ in range(3)]
    kept: list[asyncio.Task[None]] = []

    async def library() -> None:
        kept.append(asyncio.create_task(_forever(started[0], ends, "library")))

    loop.run(library())
    submitted = loop.submit(_forever(started[1], ends, "submitted"))
    ended = threading.Event()
    loop.start(_forever(started[2], ends, "started"), ended.set)
    for event in started:
        assert event.wait(10)
    loop.cancel_own()
    assert sorted(ends) == ["started", "submitted"]
    assert ended.wait(10)
    with pytest.raises(CancelledError):
        submitted.result(10)
    loop.cancel_all()
    assert ends[-1] == "library"
    loop.close()


def test_a_task_that_was_just_submitted_is_cancelled_too() -> None:
    loop, ends = LoopThread(), list[str]()
    submitted = loop.submit(_forever(threading.Event(), ends, "late"))
    loop.cancel_own()
    with pytest.raises(CancelledError):
        submitted.result(10)
    assert ends == ["late"]
    loop.close()
