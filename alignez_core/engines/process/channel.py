"""Ordered messages between both processes, each a picklable value; both ends run the same program.

Any thread, or a finaliser of the garbage collector, may queue a message without blocking. A writer thread sends
everything queued since its last write as one block, so that a step of 64 requests is one block, not 64.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import queue
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from cachetools import LRUCache

from alignez_core.editing import EditPlan
from alignez_core.engines.plan_codec import EncodedPlan, decode, encode
from alignez_core.spec.limits import Positions

_log = logging.getLogger(__name__)

#: Bytes of plans that each half remembers, so that a plan of many requests crosses once.
REMEMBERED_BYTES = 128 << 20


class Channel:
    """An end of the channel between the engine's two processes.

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
        """Queues a message; it is dropped silently if the other side is gone, which `receive` reports."""
        self._outgoing.put(message)

    def receive(self) -> list[Any] | None:
        """The next block of messages; waits for it. None: the other side is gone."""
        try:
            block: list[Any] = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return block

    def close(self) -> None:
        """Flushes the queue and closes the connection. Not to be called while another thread is in `receive`."""
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
            # Out of memory, or a value that cannot be pickled. A lost message would leave its receiver waiting for
            # ever, so the channel is closed, which both sides notice.
            _log.exception("a message to the other process cannot be written")
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            return False
        return True


_HANG_UP = object()


class PlanOnTheWire(NamedTuple):
    """A plan's number, and the plan unless the receiver remembers it."""

    number: int
    content: tuple[EncodedPlan, int | None, Positions] | None


class SentPlans:
    """The sender's cache of plans. Messages must be sent in the order of the calls, or the receiver's would differ.

    Args:
        max_bytes: of all remembered plans; a larger plan is sent anew each time.
    """

    def __init__(self, max_bytes: int = REMEMBERED_BYTES) -> None:
        self._next = 0
        # By identity: hashing the content of a plan that lives for one request costs more than sending it. The plan
        # itself is kept beside its number, so that no other plan gets its identity meanwhile.
        self._numbers: LRUCache[int, tuple[int, EditPlan]] = LRUCache(max_bytes, lambda entry: entry[1].nbytes)

    def wire(self, plan: EditPlan | None) -> PlanOnTheWire | None:
        """The message for a plan: with its content the first time, its number afterwards."""
        if plan is None or plan.is_identity:
            return None
        known = self._numbers.get(id(plan))
        if known is not None:
            return PlanOnTheWire(known[0], None)
        number, self._next = self._next, self._next + 1
        if plan.nbytes <= self._numbers.maxsize:
            self._numbers[id(plan)] = (number, plan)
        return PlanOnTheWire(number, (encode(plan), plan.steps, plan.positions))


class ReceivedPlans:
    """The receiver's memory; it drops the same plans as the sender's, because both see the same plans in one order."""

    def __init__(self, max_bytes: int = REMEMBERED_BYTES) -> None:
        self._plans: LRUCache[int, EditPlan] = LRUCache(max_bytes, lambda plan: plan.nbytes)

    def plan(self, wire: PlanOnTheWire | None) -> EditPlan | None:
        """The plan that was sent."""
        if wire is None:
            return None
        if wire.content is None:
            return self._plans[wire.number]
        plan = decode(*wire.content)
        if plan.nbytes <= self._plans.maxsize:
            self._plans[wire.number] = plan
        return plan
