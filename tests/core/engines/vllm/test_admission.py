"""Callers take turns for vLLM's rows, a full queue refuses, and no place is lost however a request ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from alignez_core.engines.vllm.admission import Admission, Ticket
from alignez_core.engines.vllm.loop_thread import LoopThread
from alignez_core.errors import EngineClosed, EngineOverloaded


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 10))


def is_in(admission: Admission, ticket: Ticket) -> bool:
    return ticket in admission._admitted


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_one_callers_many_do_not_hold_up_anothers_few() -> None:
    async def work() -> list[str | None]:
        admission = Admission(4, 1000)
        order: list[str | None] = []

        async def request(ticket: Ticket) -> None:
            await admission.turn(ticket)
            order.append(ticket.group)
            await settle()
            admission.leave(ticket)

        tickets = admission.enter(["many"] * 40, bounded=True) + admission.enter(["few"] * 3, bounded=True)
        await asyncio.gather(*(request(ticket) for ticket in tickets))
        assert admission.counts == (0, 0)
        return order

    order = run(work())
    assert len(order) == 43
    assert max(i for i, group in enumerate(order) if group == "few") < 12


def test_never_more_are_let_in_than_rows_and_a_quarter() -> None:
    async def work() -> None:
        admission = Admission(8, 1000)
        tickets = admission.enter([None] * 30, bounded=True)
        tasks = [asyncio.create_task(admission.turn(ticket)) for ticket in tickets]
        await settle()
        assert sum(is_in(admission, ticket) for ticket in tickets) == 10
        assert admission.counts == (8, 22)
        admission.leave(tickets[0])
        admission.leave(tickets[0])
        await settle()
        assert [is_in(admission, ticket) for ticket in tickets[:12]] == [False, *[True] * 10, False]
        assert admission.counts == (8, 21)
        for ticket in tickets:
            admission.leave(ticket)
        await asyncio.gather(*tasks)

    run(work())


def test_a_full_queue_refuses_but_not_a_group_that_has_none_waiting() -> None:
    async def work() -> None:
        admission = Admission(1, 1)
        tickets = admission.enter(["many", "many"], bounded=False)
        tasks = [asyncio.create_task(admission.turn(ticket)) for ticket in tickets]
        await settle()
        # vLLM has both, but a row for one only: the other waits.
        with pytest.raises(EngineOverloaded):
            admission.enter(["many"], bounded=True)
        assert len(admission.enter(["few"], bounded=True)) == 1
        with pytest.raises(EngineOverloaded):
            admission.enter(["few"], bounded=True)
        for task in tasks:
            await task

    run(work())


def test_no_waiting_is_none_for_anybody() -> None:
    admission = Admission(1, 0)
    admission.enter(["one"], bounded=True)
    with pytest.raises(EngineOverloaded):
        admission.enter(["another"], bounded=True)


def test_whoever_gives_up_waiting_leaves_the_turn_to_the_next() -> None:
    async def work() -> None:
        admission = Admission(1, 100)
        tickets = admission.enter([None] * 4, bounded=True)
        tasks = [asyncio.create_task(admission.turn(ticket)) for ticket in tickets]
        await settle()
        waiting = [i for i, ticket in enumerate(tickets) if not is_in(admission, ticket)]
        assert waiting == [2, 3]
        tasks[2].cancel()
        admission.leave(tickets[2])
        admission.leave(tickets[0])
        await settle()
        assert is_in(admission, tickets[3])
        assert not is_in(admission, tickets[2])
        assert admission.counts == (1, 1)  # one beyond the row is with vLLM already

    run(work())


class TestStart:
    def test_the_end_is_told_once_however_work_ends(self) -> None:
        loop = LoopThread()
        ended: list[str] = []
        told = threading.Semaphore(0)

        def end(name: str) -> Any:
            def end() -> None:
                ended.append(name)
                told.release()

            return end

        async def short() -> None:
            return

        async def endless() -> None:
            await asyncio.Event().wait()

        async def broken() -> None:
            raise asyncio.CancelledError

        loop.start(short(), end("short"))
        loop.start(broken(), end("broken"))
        cancel = loop.start(endless(), end("endless"))
        cancel()
        cancel()
        for _ in range(3):
            assert told.acquire(timeout=5)
        loop.cancel_all()
        loop.close()
        assert sorted(ended) == ["broken", "endless", "short"]

    def test_work_that_is_cancelled_before_its_first_step_has_an_end_too(self) -> None:
        loop = LoopThread()
        held, told, begun = threading.Event(), threading.Event(), []

        async def work() -> None:
            begun.append(True)

        loop.call(held.wait)  # so that start and cancel are handled in one turn of the loop
        loop.start(work(), told.set)()
        held.set()
        assert told.wait(5)
        assert not begun
        loop.close()

    def test_a_closed_loop_refuses_and_what_it_ran_can_still_be_cancelled(self) -> None:
        loop = LoopThread()

        async def work() -> None:
            return

        told = threading.Event()
        cancel = loop.start(work(), told.set)
        assert told.wait(5)
        loop.close()
        cancel()
        with pytest.raises(EngineClosed):
            loop.start(work(), told.set)
