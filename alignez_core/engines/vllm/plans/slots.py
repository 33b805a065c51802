"""Assignment of edit plans to slots of the device table: pinned while in use, least recently used evicted.

The application's half: it decides, the worker only writes what it is told. Not thread-safe: one event loop owns it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from alignez_core.editing import EditPlan

#: Requests whose plan is there already that may pass the first in line, before they queue behind it too.
_PATIENCE = 64


@dataclass
class _Slot:
    """A plan in a slot. Until it has loaded, the slot is not reused, even if no request needs the plan any more."""

    number: int
    sha256: str
    users: int = 0
    loaded: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(eq=False)
class _Waiter:
    plan: EditPlan
    given: asyncio.Future[_Slot] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True)
class SlotCounts:
    """Slot counters for operators: hits, loads, evictions, and requests that wait for a slot."""

    hits: int
    loads: int
    evictions: int
    waiting: int
    live: int


class PlanSlots:
    """A fixed number of slots for any number of plans.

    A slot passes from its last user directly to the first waiter, so that no request takes it in between. A request
    whose plan is in a slot needs none and passes, but not for ever: plans that never rest would keep others out.

    Args:
        count: slots beside slot 0.
        load: writes a plan into a slot of every worker's table.
    """

    def __init__(self, count: int, load: Callable[[int, EditPlan], Awaitable[None]]) -> None:
        self._load = load
        self._free = list(range(count, 0, -1))
        self._by_plan: dict[str, _Slot] = {}
        self._idle: OrderedDict[str, _Slot] = OrderedDict()  # loaded, not in use, least recently used first
        self._waiting: deque[_Waiter] = deque()
        self._passed = 0  # by how many the first in line was
        self._hits = self._loads = self._evictions = 0

    @property
    def counts(self) -> SlotCounts:
        live = len(self._by_plan) - len(self._idle)
        return SlotCounts(self._hits, self._loads, self._evictions, len(self._waiting), live)

    async def acquire(self, plan: EditPlan) -> int:
        """The number of a slot that holds the plan and keeps it until `release`; waits, first come first served.

        Raises: whatever `load` raises; the slot is free again then.
        """
        waiter = _Waiter(plan)
        if not self._waiting or (plan.sha256 in self._by_plan and self._passed < _PATIENCE):
            self._passed += bool(self._waiting)
            slot = self._take(plan)
        else:
            slot = None
        if slot is None:
            self._waiting.append(waiter)
            try:
                slot = await waiter.given
            except asyncio.CancelledError:
                if waiter.given.done() and not waiter.given.cancelled():
                    self._drop_user(waiter.given.result())
                elif waiter in self._waiting:
                    self._waiting.remove(waiter)
                    self._serve()  # those behind it may need no slot
                raise
        try:
            # Shielded: one user who gives up must not take the load away from the others.
            await asyncio.shield(slot.loaded)
        except BaseException:
            self._drop_user(slot)
            raise
        return slot.number

    def release(self, plan: EditPlan) -> None:
        """Ends one use. The plan stays in its slot until another needs it."""
        self._drop_user(self._by_plan[plan.sha256])

    def _take(self, plan: EditPlan) -> _Slot | None:
        """One more user of the plan's slot, or of one that begins to load it; None: all are in use by other plans."""
        slot = self._by_plan.get(plan.sha256)
        if slot is not None:
            self._hits += 1
            self._idle.pop(plan.sha256, None)
        else:
            number = self._vacate()
            if number is None:
                return None
            slot = self._begin(number, plan)
        slot.users += 1
        return slot

    def _vacate(self) -> int | None:
        if self._free:
            return self._free.pop()
        if not self._idle:
            return None
        sha256, slot = self._idle.popitem(last=False)
        del self._by_plan[sha256]
        self._evictions += 1
        return slot.number

    def _begin(self, number: int, plan: EditPlan) -> _Slot:
        slot = self._by_plan[plan.sha256] = _Slot(number, plan.sha256)
        self._loads += 1
        # In a task of its own, so that a caller who is cancelled leaves no half-written slot behind.
        task = asyncio.ensure_future(self._load(number, plan))
        task.add_done_callback(lambda done: self._loaded(slot, done))
        return slot

    def _loaded(self, slot: _Slot, done: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            slot.loaded.set_result(None)
        else:
            # No new request gets this slot; its users release it.
            del self._by_plan[slot.sha256]
            slot.loaded.set_exception(error if isinstance(error, Exception) else RuntimeError("loading was cancelled"))
            slot.loaded.exception()  # retrieved: a slot without users must not warn
        if not slot.users:
            self._rest(slot)

    def _drop_user(self, slot: _Slot) -> None:
        slot.users -= 1
        if not slot.users and slot.loaded.done():
            self._rest(slot)

    def _rest(self, slot: _Slot) -> None:
        """The slot may be another plan's now."""
        if self._by_plan.get(slot.sha256) is slot:
            self._idle[slot.sha256] = slot
        else:
            self._free.append(slot.number)
        self._serve()

    def _serve(self) -> None:
        """Gives slots to those in line, as far as there are any."""
        while self._waiting:
            first = self._waiting[0]
            slot = None if first.given.done() else self._take(first.plan)  # done: cancelled, and not yet run since
            if slot is None and not first.given.done():
                return
            self._waiting.popleft()
            self._passed = 0
            if slot is None:
                continue
            first.given.set_result(slot)
            # Requests that wait for the same plan share the slot.
            for other in [other for other in self._waiting if other.plan.sha256 == slot.sha256]:
                self._waiting.remove(other)
                if not other.given.done():
                    self._take(other.plan)
                    other.given.set_result(slot)
