"""Plans wanted together travel together, and one that fails, or is given up, is nobody else's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.vllm.plans import loader as plan_loader
from alignez_core.engines.vllm.plans.loader import PlanLoader
from alignez_core.engines.vllm.plans.message import PlanMessage

PLAN = EditPlan.additive([0], torch.ones(1, 2))


class Workers:
    """Notes the slots of every message that arrives; the answer takes as long as the test wants."""

    def __init__(self) -> None:
        self.messages: list[list[int]] = []
        self.broken: set[int] = set()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def write(self, plans: Sequence[PlanMessage]) -> None:
        self.messages.append([message[0] for message in plans])
        await self.may_answer.wait()
        if self.broken & {message[0] for message in plans}:
            raise ConnectionError("no worker")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 10))


def test_plans_wanted_in_one_turn_of_the_loop_are_one_message() -> None:
    async def work() -> None:
        workers = Workers()
        loader = PlanLoader(workers.write)
        await asyncio.gather(*(loader.load(slot, PLAN) for slot in (1, 2, 3)))
        assert workers.messages == [[1, 2, 3]]

    run(work())


def test_plans_wanted_while_a_message_is_under_way_are_the_next_one() -> None:
    async def work() -> None:
        workers = Workers()
        workers.may_answer.clear()
        loader = PlanLoader(workers.write)
        loads = [await begun(loader.load(1, PLAN)), *[await begun(loader.load(slot, PLAN)) for slot in (2, 3)]]
        assert workers.messages == [[1]]
        workers.may_answer.set()
        await asyncio.gather(*loads)
        assert workers.messages == [[1], [2, 3]]

    run(work())


def test_a_message_has_a_bound_and_takes_a_plan_above_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        workers = Workers()
        loader = PlanLoader(workers.write)
        monkeypatch.setattr(plan_loader, "_MOST_BYTES", 2 * PLAN.nbytes)
        await asyncio.gather(*(loader.load(slot, PLAN) for slot in (1, 2, 3)))
        monkeypatch.setattr(plan_loader, "_MOST_BYTES", 1)
        await loader.load(4, PLAN)
        assert workers.messages == [[1, 2], [3], [4]]

    run(work())


def test_a_plan_that_cannot_be_written_fails_alone() -> None:
    async def work() -> None:
        workers = Workers()
        workers.broken = {2}
        loader = PlanLoader(workers.write)
        ends = await asyncio.gather(*(loader.load(slot, PLAN) for slot in (1, 2, 3)), return_exceptions=True)
        assert [type(end) for end in ends] == [type(None), ConnectionError, type(None)]

    run(work())


def test_who_gives_up_before_the_message_leaves_is_not_in_it_and_the_others_are() -> None:
    async def work() -> None:
        workers = Workers()
        loader = PlanLoader(workers.write)
        # All three in the same slot, as when it has changed hands twice meanwhile.
        loads = [asyncio.ensure_future(loader.load(1, PLAN)) for _ in range(3)]
        await asyncio.sleep(0)
        for load in loads[:2]:
            load.cancel()
        await loads[2]
        assert workers.messages == [[1]]

    run(work())


def test_who_gives_up_while_the_message_is_under_way_takes_nothing_from_the_others() -> None:
    async def work() -> None:
        workers = Workers()
        workers.may_answer.clear()
        loader = PlanLoader(workers.write)
        loads = [asyncio.ensure_future(loader.load(slot, PLAN)) for slot in (1, 2)]
        while not workers.messages:
            await asyncio.sleep(0)
        loads[0].cancel()
        workers.may_answer.set()
        await loads[1]
        assert workers.messages == [[1, 2]]

    run(work())


async def begun(load: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """The load as a task, after its message, if it makes one, has left."""
    task = asyncio.ensure_future(load)
    for _ in range(5):
        await asyncio.sleep(0)
    return task
