"""Which edit plan lives in which slot of the device table: pinned while a request uses it, least recently used out.

The application's half: it decides, the worker only writes what it is told. Not thread-safe: one event loop owns it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from alignez_core.editing import EditPlan


@dataclass
class _Slot:
    number: int
    sha256: str
    users: int = 0
    loaded: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True)
class SlotCounts:
    """What an operator watches: plans found in a slot, plans loaded, plans thrown out, requests waiting for a slot."""

    hits: int
    loads: int
    evictions: int
    waiting: int
    live: int


class PlanSlots:
    """A fixed number of slots for any number of plans.

    Args:
        count: slots beside slot 0.
        load: writes a plan into a slot of every worker's table.
    """

    def __init__(self, count: int, load: Callable[[int, EditPlan], Awaitable[None]]) -> None:
        self._load = load
        self._free = list(range(count, 0, -1))
        self._by_plan: dict[str, _Slot] = {}
        self._idle: OrderedDict[str, _Slot] = OrderedDict()  # not in use, least recently used first
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._hits = self._loads = self._evictions = 0

    @property
    def counts(self) -> SlotCounts:
        live = len(self._by_plan) - len(self._idle)
        return SlotCounts(self._hits, self._loads, self._evictions, len(self._waiting), live)

    async def acquire(self, plan: EditPlan) -> int:
        """The number of a slot that holds the plan and keeps it until `release`; waits, first come first served.

        Raises: whatever `load` raises; the slot is free again then.
        """
        while True:
            slot = self._by_plan.get(plan.sha256)
            if slot is not None:
                self._hits += 1
                self._idle.pop(plan.sha256, None)
                slot.users += 1
                try:
                    # Shielded: one user who gives up must not take the load away from the others.
                    await asyncio.shield(slot.loaded)
                except BaseException:
                    self._drop_user(slot)
                    raise
                return slot.number
            number = self._vacate()
            if number is not None:
                return await self._fill(number, plan)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake_next()  # the turn was given and cannot be taken: the next in line has it
                elif turn in self._waiting:
                    self._waiting.remove(turn)
                raise

    def release(self, plan: EditPlan) -> None:
        """Ends one use. The plan stays in its slot until another needs it."""
        self._drop_user(self._by_plan[plan.sha256])

    def _vacate(self) -> int | None:
        if self._free:
            return self._free.pop()
        if not self._idle:
            return None
        sha256, slot = self._idle.popitem(last=False)
        del self._by_plan[sha256]
        self._evictions += 1
        return slot.number

    async def _fill(self, number: int, plan: EditPlan) -> int:
        slot = self._by_plan[plan.sha256] = _Slot(number, plan.sha256, users=1)
        self._loads += 1
        # In a task of its own, so that a caller who is cancelled leaves no half-written slot behind.
        task = asyncio.ensure_future(self._load(number, plan))
        task.add_done_callback(lambda done: self._loaded(slot, done))
        try:
            await asyncio.shield(slot.loaded)
        except BaseException:
            self._drop_user(slot)
            raise
        return number

    def _loaded(self, slot: _Slot, done: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            slot.loaded.set_result(None)
            return
        # Nobody finds it any more; its users give it back one by one.
        self._by_plan.pop(slot.sha256, None)
        slot.loaded.set_exception(error if isinstance(error, Exception) else RuntimeError("loading was cancelled"))
        slot.loaded.exception()  # retrieved: a slot without users must not warn

    def _drop_user(self, slot: _Slot) -> None:
        slot.users -= 1
        if slot.users:
            return
        if self._by_plan.get(slot.sha256) is slot:
            self._idle[slot.sha256] = slot
        else:
            self._free.append(slot.number)
        self._wake_next()

    def _wake_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
