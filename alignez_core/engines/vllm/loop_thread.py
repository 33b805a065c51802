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
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="alignez-vllm", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Any:
        """Starts `work`; a `concurrent.futures.Future`."""
        if self._loop.is_closed():
            work.close()
            raise EngineClosed("the engine is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def start(self, work: Coroutine[Any, Any, None], on_end: Callable[[], None]) -> Callable[[], None]:
        """Starts `work` that nobody waits for; returns what cancels it, which takes no lock.

        Args:
            on_end: called on the loop when it has ended, also when it was cancelled before its first step: then not
                even its `finally` has run.
        Raises: EngineClosed.
        """
        tasks: list[asyncio.Task[None]] = []

        def begin() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda _: on_end())
            tasks.append(task)

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs any more
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())

        if self._loop.is_closed():
            work.close()
            raise EngineClosed("the engine is closed")
        self._loop.call_soon_threadsafe(begin)
        return cancel

    def call(self, work: Callable[[], None]) -> None:
        """Has `work` called on the loop soon."""
        self._loop.call_soon_threadsafe(work)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end, from another thread."""
        result: T = self.submit(work).result()
        return result

    def cancel_all(self, *, of: str | None = None) -> None:
        """Cancels what runs and waits for it.

        Args:
            of: only tasks of coroutines that this source file defines.
        """

        async def cancel() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            tasks = [task for task in others if of is None or _source_of(task) == of]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _source_of(task: asyncio.Task[Any]) -> str | None:
    code = getattr(task.get_coro(), "cr_code", None)
    return None if code is None else str(code.co_filename)
