"""vLLM's outputs for one prompt, streamed or whole, and its errors, as ours."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

from vllm import RequestOutput, SamplingParams, TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from alignez_core.engines.vllm.workers import CORE_ENDED
from alignez_core.errors import AlignezError, EngineClosed

T = TypeVar("T")


class Outputs:
    """Runs prompts under names of their own."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._ids = itertools.count()

    async def stream(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[RequestOutput]:
        """Pieces as they come; closing it is what aborts the request in vLLM, so do not leave that to the collector."""
        source = self._llm.generate(TokensPrompt(prompt_token_ids=list(prompt)), params, f"r{next(self._ids)}")
        async with contextlib.aclosing(source) as outputs:
            async for output in outputs:
                yield output

    async def last(self, prompt: Sequence[int], params: SamplingParams) -> RequestOutput:
        """The whole answer. Raises: AlignezError, of vLLM's own if that is what it raised."""
        last = None
        try:
            async with contextlib.aclosing(self.stream(prompt, params)) as outputs:
                async for output in outputs:
                    last = output
        except Exception as error:
            raise as_engine_error(error) from error
        if last is None:
            raise AlignezError("vLLM ended a request without an answer")
        return last


async def gathered(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; the first error cancels the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def as_engine_error(error: Exception) -> AlignezError:
    """The error itself if it is ours, else one of ours that says what vLLM said."""
    if isinstance(error, AlignezError):
        return error
    dead = isinstance(error, EngineDeadError)
    failure = EngineClosed(CORE_ENDED) if dead else AlignezError(f"vLLM failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
