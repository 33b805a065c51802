"""Messages between the two halves, in order, each a picklable value; both ends are the same program's.

A message is put from any thread, by a garbage collector's finaliser too, and never waits for the other side: a thread
of the channel writes what has gathered since its last write as one block. So a step of 64 rows is one block, not 64.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import queue
import socket
import threading
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from alignez_core.editing import EditPlan

_log = logging.getLogger(__name__)

#: Plans that both halves remember, so that a plan of many requests crosses once.
REMEMBERED_PLANS = 256


class Channel:
    """One end.

    Args:
        end: a connected stream socket; the channel owns it.
    """

    def __init__(self, end: socket.socket) -> None:
        # Beside the connection, which cannot be shut down while another thread reads from it.
        self._socket = end
        self._connection = Connection(end.dup().detach())
        # The only queue whose `put` a finaliser may call: it is reentrant.
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="alignez-channel", daemon=True)
        self._sender.start()

    def send(self, message: object) -> None:
        """Queues a message. When the other side is gone it goes nowhere; `receive` tells."""
        self._outgoing.put(message)

    def receive(self) -> list[Any] | None:
        """The next block of messages; waits for it. None: the other side is gone."""
        try:
            block: list[Any] = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return block

    def close(self) -> None:
        """Writes what is queued and hangs up. Not to be called while another thread is in `receive`."""
        self._outgoing.put(_HANG_UP)
        self._sender.join()
        self._connection.close()
        self._socket.close()

    def _send_all(self) -> None:
        is_open = True
        hang_up = False
        while not hang_up:
            block = []
            message = self._outgoing.get()
            while message is not _HANG_UP:
                block.append(message)
                if self._outgoing.empty():
                    break
                message = self._outgoing.get()
            hang_up = message is _HANG_UP  # what was put after it goes nowhere
            if is_open and block:
                is_open = self._send_block(block)

    def _send_block(self, block: list[Any]) -> bool:
        """Writes it; returns whether more can be written."""
        try:
            self._connection.send_bytes(pickle.dumps(block, pickle.HIGHEST_PROTOCOL))
        except OSError:
            return False
        except Exception:
            # Out of memory, or a value that cannot be pickled. A message that is missing would leave somebody waiting
            # for ever; an end is seen by both sides.
            _log.exception("a message to the other process cannot be written")
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            return False
        return True


_HANG_UP = object()


class PlanOnTheWire(NamedTuple):
    """A plan by number, and what it is unless the other side has it."""

    number: int
    content: tuple[Any, ...] | None


class SentPlans:
    """The sender's memory. Its owner sends in the order in which it asked, and the receiver keeps the same plans."""

    def __init__(self, size: int = REMEMBERED_PLANS) -> None:
        self._size = size
        self._next = 0
        # By identity: making the content hash of a plan that lives for one request costs more than sending it. The
        # plan itself is kept beside its number, so that no other gets its identity meanwhile.
        self._numbers: OrderedDict[int, tuple[int, EditPlan]] = OrderedDict()

    def wire(self, plan: EditPlan | None) -> PlanOnTheWire | None:
        """The message for a plan: whole the first time, its key afterwards."""
        if plan is None or plan.is_identity:
            return None
        known = self._numbers.get(id(plan))
        if known is not None:
            self._numbers.move_to_end(id(plan))
            return PlanOnTheWire(known[0], None)
        number, self._next = self._next, self._next + 1
        self._numbers[id(plan)] = (number, plan)
        if len(self._numbers) > self._size:
            self._numbers.popitem(last=False)
        tables = [table.numpy() for table in (plan.U, plan.V, plan.c)]
        return PlanOnTheWire(number, (plan.layers, *tables, plan.steps, plan.positions))


class ReceivedPlans:
    """The receiver's memory."""

    def __init__(self, size: int = REMEMBERED_PLANS) -> None:
        self._size = size
        self._plans: OrderedDict[int, EditPlan] = OrderedDict()

    def plan(self, wire: PlanOnTheWire | None) -> EditPlan | None:
        """The plan that was sent."""
        if wire is None:
            return None
        if wire.content is None:
            self._plans.move_to_end(wire.number)
            return self._plans[wire.number]
        layers, u, v, c, steps, positions = wire.content
        u, v, c = (torch.from_numpy(table) for table in (u, v, c))
        plan = EditPlan(layers, u, v, c, steps, positions)
        self._plans[wire.number] = plan
        if len(self._plans) > self._size:
            self._plans.popitem(last=False)
        return plan
