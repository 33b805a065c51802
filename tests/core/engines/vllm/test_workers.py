"""Calls of vLLM's workers end with its engine core; vLLM alone leaves them unanswered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from alignez_core.engines.vllm.workers import Workers
from alignez_core.errors import EngineClosed


class Core:
    """An engine core that answers when it may."""

    def __init__(self) -> None:
        self.ends = asyncio.Event()
        self.answers = asyncio.Event()
        self.output_handler: asyncio.Task[None] | None = asyncio.ensure_future(self._hand_out())

    async def _hand_out(self) -> None:
        await self.ends.wait()

    async def collective_rpc(self, method: str, *, args: tuple[Any, ...]) -> list[Any]:
        await self.answers.wait()
        if method == "broken":
            raise ValueError(method)
        return [args]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 10))


def test_a_call_brings_the_answers_or_what_it_raised() -> None:
    async def work() -> None:
        core = Core()
        core.answers.set()
        assert await Workers(core).call("method", 1, "two") == [(1, "two")]
        with pytest.raises(ValueError, match="broken"):
            await Workers(core).call("broken")

    run(work())


def test_calls_under_way_and_later_ones_fail_when_the_core_ends() -> None:
    async def work() -> None:
        core = Core()
        workers = Workers(core)
        lost: list[bool] = []
        workers.when_lost(lambda: lost.append(True))
        under_way = asyncio.ensure_future(workers.call("method"))
        await asyncio.sleep(0)
        core.ends.set()
        with pytest.raises(EngineClosed, match="ended"):
            await under_way
        with pytest.raises(EngineClosed, match="ended"):
            await workers.call("method")
        assert lost == [True]

    run(work())


def test_a_caller_who_gives_up_leaves_no_call_behind() -> None:
    async def work() -> None:
        core = Core()
        before = asyncio.all_tasks()
        call = asyncio.ensure_future(Workers(core).call("method"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    run(work())
