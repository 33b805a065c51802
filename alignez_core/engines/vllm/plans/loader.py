"""Plans on their way into slots: those that are wanted at the same time travel in one message.

vLLM's engine core reads messages between two steps of the model, and the answer comes back after one. Plans sent one
after the other would cost a step each; together they cost one, however many users arrive at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from alignez_core.editing import EditPlan
from alignez_core.engines.plan_codec import encode
from alignez_core.engines.vllm.plans.message import PlanMessage

#: The engine core makes no tokens while it reads and writes a message.
_MOST_BYTES = 8 * 2**20


@dataclass
class _Wanted:
    slot: int
    plan: EditPlan
    written: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PlanLoader:
    """Writes plans into slots of every worker, one message under way at a time. Not thread-safe: one loop owns it.

    Args:
        send: has the workers write plans; returns when they all have.
    """

    def __init__(self, send: Callable[[Sequence[PlanMessage]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: deque[_Wanted] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def load(self, slot: int, plan: EditPlan) -> None:
        """Returns when the plan is in the slot. Cancelled before its message leaves, it is not written at all.

        Raises: whatever `send` raises for this plan alone.
        """
        wanted = _Wanted(slot, plan)
        self._waiting.append(wanted)
        if self._sending is None:
            # A task of its own, so that a caller who is cancelled does not cancel the loads of others.
            self._sending = asyncio.ensure_future(self._send_all())
        await wanted.written

    async def _send_all(self) -> None:
        batch: list[_Wanted] = []
        try:
            while self._waiting:
                await asyncio.sleep(0)  # plans wanted in the same turn of the loop join this message
                batch = self._next_batch()
                if batch:
                    await self._write(batch)
        finally:
            self._sending = None
            for wanted in (*batch, *self._waiting):  # there are some only if this task was cancelled
                wanted.written.cancel()
            self._waiting.clear()

    def _next_batch(self) -> list[_Wanted]:
        batch: list[_Wanted] = []
        room = _MOST_BYTES
        while self._waiting:
            wanted = self._waiting[0]
            size = wanted.plan.nbytes
            if batch and size > room:
                break
            self._waiting.popleft()
            # Cancelled: the engine closes.
            if not wanted.written.done():
                batch.append(wanted)
                room -= size
        return batch

    async def _write(self, batch: list[_Wanted]) -> None:
        try:
            await self._send([(wanted.slot, encode(wanted.plan)) for wanted in batch])
        except Exception as error:
            if len(batch) == 1:
                _end(batch[0], error)
                return
            # One plan's error must not be its neighbours'. Writing a plan twice changes nothing.
            for wanted in batch:
                await self._write([wanted])
        else:
            for wanted in batch:
                _end(wanted, None)


def _end(wanted: _Wanted, error: Exception | None) -> None:
    if wanted.written.done():
        return
    if error is None:
        wanted.written.set_result(None)
    else:
        wanted.written.set_exception(error)
