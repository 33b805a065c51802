"""Calls of vLLM's workers, which fail when its engine core ends; vLLM itself would leave them waiting for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from alignez_core.errors import EngineClosed

#: Error message when vLLM's process has ended.
CORE_ENDED = "vLLM's engine core has ended"


class Llm(Protocol):
    """The methods of `AsyncLLM` (0.32) in use here."""

    #: Hands out what the engine core says; it ends with the core.
    output_handler: asyncio.Task[None] | None

    async def collective_rpc(self, method: str, *, args: tuple[Any, ...]) -> list[Any]:
        """Calls a method of every worker; returns their results in rank order."""
        ...


class Workers:
    """Every worker of one engine. Not thread-safe: the engine's loop owns it."""

    def __init__(self, llm: Llm) -> None:
        self._llm = llm

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of every worker; returns their results in rank order.

        Raises: EngineClosed: the engine core ended before it had answered; whatever the call raises.
        """
        handler = self._llm.output_handler
        if handler is None:
            return await self._llm.collective_rpc(method, args=args)
        call = asyncio.ensure_future(self._llm.collective_rpc(method, args=args))
        try:
            await asyncio.wait({call, handler}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise EngineClosed(CORE_ENDED)
            return call.result()
        finally:
            call.cancel()

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Calls `tell` on the loop when the engine core has ended, asked to or not."""
        handler = self._llm.output_handler
        if handler is not None:
            handler.add_done_callback(lambda _: tell())
