"""Time to first token and between tokens, as a client of `Engine.stream` in the same process sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alignez_core.engines.base import Engine, GenerationRequest

#: One stream gives too few answers for a 95th percentile, so fewer streams start more often.
LEAST_ANSWERS = 24


@dataclass
class Latency:
    """Seconds, of one engine at one number of streams."""

    engine: str
    streams: int
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def percentiles_ms(self) -> dict[str, float]:
        """By figure, milliseconds."""
        return {
            f"{what} p{q}": 1000 * float(np.percentile(seconds, q))
            for what, seconds in (("time to first token", self.first), ("between tokens", self.between))
            for q in (50, 95)
        }


def latencies(
    engines: dict[str, Engine], requests: Sequence[GenerationRequest], streams: Sequence[int], bursts: int
) -> list[Latency]:
    """Bursts of N streams started at the same moment, the engines in turn.

    Args:
        requests: taken one after the other, from the beginning again when they are used up; each engine answers all
            of them once first, so that their plans are where it keeps plans.
        bursts: at least so many of each number of streams.
    """
    for engine in engines.values():
        engine.generate(requests)
    found = []
    for count in streams:
        row = [Latency(name, count) for name in engines]
        for burst in range(max(bursts, LEAST_ANSWERS // count)):
            chosen = [requests[(burst * count + i) % len(requests)] for i in range(count)]
            for latency in row if burst % 2 == 0 else row[::-1]:
                asyncio.run(_burst(engines[latency.engine], chosen, latency))
        found += row
    return found


async def _burst(engine: Engine, requests: Sequence[GenerationRequest], into: Latency) -> None:
    await asyncio.gather(*(_read(engine, request, into) for request in requests))


async def _read(engine: Engine, request: GenerationRequest, into: Latency) -> None:
    last, started = 0.0, time.perf_counter()
    async for chunk in engine.stream(request):
        now, tokens = time.perf_counter(), len(chunk.token_ids)
        if not last and tokens:
            into.first.append(now - started)
        elif tokens:
            # Tokens that come in one piece share the wait.
            into.between += [(now - last) / tokens] * tokens
        if tokens:
            last = now
