"""An event loop in a thread of its own, for an engine whose callers sit in any thread or loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from alignez_core.errors import EngineClosed

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread, which knows the tasks that were started through it from those of libraries."""

    def __init__(self) -> None:
        self._own: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="alignez-vllm", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Any:
        """Starts `work`; a `concurrent.futures.Future`."""
        if self._loop.is_closed():
            work.close()
            raise EngineClosed("the engine is closed")
        return asyncio.run_coroutine_threadsafe(self._owned(work), self._loop)

    async def _owned(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._own.add(task)
        try:
            return await work
        finally:
            self._own.discard(task)

    def start(self, work: Coroutine[Any, Any, None], on_end: Callable[[], None]) -> Callable[[], None]:
        """Starts `work` in the background; returns a function that cancels it, which takes no lock.

        Args:
            on_end: called on the loop when it has ended, also when it was cancelled before its first step: then not
                even its `finally` has run.
        Raises: EngineClosed.
        """
        tasks: list[asyncio.Task[None]] = []

        def begin() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda _: on_end())
            task.add_done_callback(self._own.discard)
            self._own.add(task)
            tasks.append(task)

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs any more
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())

        if self._loop.is_closed():
            work.close()
            raise EngineClosed("the engine is closed")
        self._loop.call_soon_threadsafe(begin)
        return cancel

    def call(self, work: Callable[[], object]) -> None:
        """Has `work` called on the loop soon."""
        self._loop.call_soon_threadsafe(work)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end, from another thread."""
        result: T = self.submit(work).result()
        return result

    def cancel_own(self) -> None:
        """Cancels what was started here and waits for it."""
        self.run(self._cancel(lambda: self._own))

    def cancel_all(self) -> None:
        """Cancels whatever runs on the loop and waits for it."""
        self.run(self._cancel(asyncio.all_tasks))

    async def _cancel(self, running: Callable[[], set[asyncio.Task[Any]]]) -> None:
        tasks = running() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
