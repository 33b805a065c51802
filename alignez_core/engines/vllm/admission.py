"""Admission of requests to vLLM, in turns of their groups.

vLLM serves in the order in which it is given requests, so those beyond its rows wait here, where callers take turns.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alignez_core.engines.common.admission import FairQueue, may_wait
from alignez_core.errors import EngineOverloaded


@dataclass(eq=False)
class Ticket:
    """A place in the queue, as `common.admission.Waits`. Sizes are 0, because vLLM pages its memory."""

    group: str | None
    prompt_tokens: int = 0
    cache_tokens: int = 0
    cancelled: bool = False
    turn: asyncio.Future[None] | None = None


class Admission:
    """`enter` in any thread; `turn` and `leave` on the engine's loop.

    Args:
        max_running: rows of vLLM. A quarter more is let in, so that a row that ends finds the next one there.
        max_waiting: requests beyond `max_running` at which a bounded one is refused.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._most = max_running + max(1, max_running // 4)
        self._guard = threading.Lock()
        self._waiting: FairQueue[Ticket] = FairQueue()
        # In the order in which vLLM serves them: those beyond its rows wait there.
        self._admitted: dict[Ticket, None] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """(running, waiting) as far as it is known here; safe from any thread."""
        with self._guard:
            live = len(self._admitted) + len(self._waiting)
        running = min(live, self._max_running)
        return running, live - running

    def enter(self, groups: Sequence[str | None], *, bounded: bool) -> list[Ticket]:
        """Queues a request of each of these groups. Raises: EngineOverloaded: bounded, and there are too many."""
        tickets = [Ticket(group) for group in groups]
        with self._guard:
            live = len(self._admitted) + len(self._waiting)
            for group in groups if bounded else ():
                if not may_wait(live, self._max_running, self._max_waiting, self._has_waiting(group)):
                    raise EngineOverloaded(live - self._max_running, self._max_waiting)
            self._waiting.add(tickets)
        return tickets

    async def turn(self, ticket: Ticket) -> None:
        """Waits until the request may be given to vLLM."""
        ticket.turn = asyncio.get_running_loop().create_future()
        self._let_in()
        if ticket not in self._admitted:
            await ticket.turn

    def leave(self, ticket: Ticket) -> None:
        """The request has ended, or waits no more. Safe to call twice."""
        with self._guard:
            if ticket.cancelled:
                return
            ticket.cancelled = True
            if ticket in self._admitted:
                del self._admitted[ticket]
            else:
                self._waiting.drop_cancelled()
        self._let_in()

    def _has_waiting(self, group: str | None) -> bool:
        beyond = itertools.islice(self._admitted, self._max_running, None)
        return self._waiting.waiting_of(group) > 0 or any(ticket.group == group for ticket in beyond)

    def _let_in(self) -> None:
        admitted: list[Ticket] = []
        with self._guard:
            running = Counter(ticket.group for ticket in self._admitted) if self._waiting else Counter()
            while len(self._admitted) < self._most and (ticket := self._waiting.first(running)) is not None:
                self._waiting.remove(ticket)
                running[ticket.group] += 1
                self._admitted[ticket] = None
                admitted.append(ticket)
        for ticket in admitted:
            # One that has entered and not come to its turn yet sees it then.
            if ticket.turn is not None and not ticket.turn.done():
                ticket.turn.set_result(None)
