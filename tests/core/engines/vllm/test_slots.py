"""Any number of plans in a fixed number of slots: pinned while in use, least recently used out, nobody starves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.vllm.plans.loader import PlanLoader
from alignez_core.engines.vllm.plans.message import PlanMessage
from alignez_core.engines.vllm.plans.slots import PlanSlots, SlotCounts

PLANS = [EditPlan.additive([0], torch.full((1, 2), float(i + 1))) for i in range(12)]


class Table:
    """What a worker holds; a load takes a turn of the loop."""

    def __init__(self) -> None:
        self.slots: dict[int, str] = {}
        self.loads: list[int] = []
        self.fail = False

    async def load(self, slot: int, plan: EditPlan) -> None:
        self.slots.pop(slot, None)
        await asyncio.sleep(0)
        if self.fail:
            raise ConnectionError("no worker")
        self.slots[slot] = plan.sha256
        self.loads.append(slot)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 10))


def test_a_plan_in_use_is_shared_and_loaded_once() -> None:
    async def work() -> None:
        table = Table()
        slots = PlanSlots(2, table.load)
        numbers = await asyncio.gather(*(slots.acquire(PLANS[0]) for _ in range(5)))
        assert set(numbers) == {numbers[0]}
        assert len(table.loads) == 1
        assert slots.counts == SlotCounts(hits=4, loads=1, evictions=0, waiting=0, live=1)

    run(work())


def test_the_plan_that_rested_longest_makes_room() -> None:
    async def work() -> None:
        table = Table()
        slots = PlanSlots(2, table.load)
        for i in (0, 1, 0):
            await slots.acquire(PLANS[i])
            slots.release(PLANS[i])
        await slots.acquire(PLANS[2])
        assert set(table.slots.values()) == {PLANS[0].sha256, PLANS[2].sha256}
        assert slots.counts.evictions == 1

    run(work())


def test_a_pinned_plan_is_never_thrown_out_and_the_next_waits_for_a_release() -> None:
    async def work() -> None:
        table = Table()
        slots = PlanSlots(1, table.load)
        await slots.acquire(PLANS[0])
        waiting = asyncio.ensure_future(slots.acquire(PLANS[1]))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert slots.counts.waiting == 1
        slots.release(PLANS[0])
        await waiting
        assert list(table.slots.values()) == [PLANS[1].sha256]

    run(work())


def test_who_gives_up_waiting_leaves_the_turn_to_the_next() -> None:
    async def work() -> None:
        table = Table()
        slots = PlanSlots(1, table.load)
        await slots.acquire(PLANS[0])
        first, second = (asyncio.ensure_future(slots.acquire(PLANS[i])) for i in (1, 2))
        await asyncio.sleep(0)
        slots.release(PLANS[0])  # the first's turn, which it does not take
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await second
        slots.release(PLANS[2])
        assert slots.counts.live == 0

    run(work())


def test_a_load_that_fails_is_the_callers_error_and_costs_no_slot() -> None:
    async def work() -> None:
        table = Table()
        slots = PlanSlots(1, table.load)
        table.fail = True
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await slots.acquire(PLANS[0])
        table.fail = False
        await slots.acquire(PLANS[0])
        assert slots.counts.live == 1

    run(work())


def gated(sent: list[list[int]]) -> tuple[PlanSlots, asyncio.Event]:
    """Two slots over a loader whose messages arrive when the event says so."""
    arrive = asyncio.Event()

    async def send(plans: Sequence[PlanMessage]) -> None:
        sent.append([message[0] for message in plans])
        await arrive.wait()

    return PlanSlots(2, PlanLoader(send).load), arrive


async def begun(work: Coroutine[Any, Any, int]) -> asyncio.Future[int]:
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


def test_a_slot_on_its_way_to_nobody_is_not_given_to_another_plan_meanwhile() -> None:
    async def work() -> None:
        sent: list[list[int]] = []
        slots, arrive = gated(sent)
        first = await begun(slots.acquire(PLANS[0]))
        given_up = await begun(slots.acquire(PLANS[1]))
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        third = await begun(slots.acquire(PLANS[2]))
        arrive.set()
        await asyncio.gather(first, third)
        assert sent == [[1], [2], [2]]

    run(work())


def test_a_load_that_fails_after_its_only_user_left_costs_no_slot() -> None:
    async def work() -> None:
        table = Table()
        table.fail = True
        slots = PlanSlots(1, table.load)
        given_up = asyncio.ensure_future(slots.acquire(PLANS[0]))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await asyncio.sleep(0.01)
        table.fail = False
        assert await slots.acquire(PLANS[1]) == 1

    run(work())


def test_those_in_line_for_one_plan_share_its_slot_and_leave_the_next_free_one_to_others() -> None:
    async def work() -> None:
        slots = PlanSlots(2, Table().load)
        for held in PLANS[:2]:
            await slots.acquire(held)
        line = [await begun(slots.acquire(PLANS[i])) for i in (2, 2, 3)]
        slots.release(PLANS[0])
        await asyncio.gather(*line[:2])
        assert not line[2].done()
        slots.release(PLANS[1])
        await line[2]

    run(work())


def test_nobody_takes_a_slot_between_its_release_and_the_first_in_line() -> None:
    async def work() -> None:
        table = Table()
        slots = PlanSlots(1, table.load)
        await slots.acquire(PLANS[0])
        first = await begun(slots.acquire(PLANS[1]))
        slots.release(PLANS[0])
        later = asyncio.ensure_future(slots.acquire(PLANS[2]))
        await first
        assert not later.done()
        slots.release(PLANS[1])
        await later

    run(work())


def test_a_plan_that_never_rests_lets_others_in() -> None:
    async def work() -> None:
        slots = PlanSlots(1, Table().load)
        await slots.acquire(PLANS[0])
        waits = await begun(slots.acquire(PLANS[1]))
        # There is always one more user of the first plan, who comes before the last one goes.
        passed = 0
        while not waits.done():
            follower = await begun(slots.acquire(PLANS[0]))
            slots.release(PLANS[0])
            for _ in range(5):
                await asyncio.sleep(0)
            passed += follower.done()
            if not follower.done():
                break
        await waits
        assert passed == 64
        slots.release(PLANS[1])
        await follower

    run(work())


@pytest.mark.parametrize("seed", range(5))
def test_under_any_schedule_a_holder_finds_its_own_plan_in_its_slot(seed: int) -> None:
    chance = random.Random(seed)

    async def user(table: Table, slots: PlanSlots) -> None:
        for _ in range(20):
            plan = chance.choice(PLANS)
            task = asyncio.ensure_future(slots.acquire(plan))
            if chance.random() < 0.2:
                await asyncio.sleep(0)
                task.cancel()
            try:
                number = await task
            except asyncio.CancelledError:
                continue
            for _ in range(chance.randrange(3)):
                assert table.slots[number] == plan.sha256
                await asyncio.sleep(0)
            slots.release(plan)

    async def work() -> None:
        table = Table()
        slots = PlanSlots(3, table.load)
        await asyncio.gather(*(user(table, slots) for _ in range(8)))
        assert (slots.counts.live, slots.counts.waiting) == (0, 0)

    run(work())
