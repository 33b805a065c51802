"""Signs of life of worker and relay, which `/alive` on the metrics port reports to a liveness probe."""

from __future__ import annotations

import math
import multiprocessing
import time
from typing import Any

from celery import Celery, bootsteps

from profiles.delivery.outbox import RelayObserver
from profiles.repository.jobs import Backlog

#: Longest time between two signs of life of a worker's event loop.
_BEAT_S = 5.0


class Pulse:
    """Deadline of a loop's next sign of life, in memory that it shares with its forked children.

    Before the first `beat` and after `rest` there is none: a loop that starts, or waits for a server that is away, is
    not stuck, and a restart would not help it.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        # Read and written whole, so no lock, which a killed process would keep.
        self._due = multiprocessing.get_context("fork").RawValue("d", math.inf)

    @property
    def interval_s(self) -> float:
        """Time between two beats of a timer."""
        return min(_BEAT_S, self._patience_s / 3)

    def beat(self) -> None:
        """Notes that the loop turns."""
        self._due.value = time.monotonic() + self._patience_s

    def rest(self) -> None:
        """Notes that the loop waits, for as long as it takes."""
        self._due.value = math.inf

    def alive(self) -> bool:
        """False if the loop gave no sign of life for `patience_s`."""
        return time.monotonic() < float(self._due.value)


def watch_consumer(app: Celery, pulse: Pulse) -> None:
    """Makes the event loop of a worker's parent beat while it is connected to the broker, and rest while it is not.

    A running fit does not matter: it runs in the child, and the loop goes on beside it.
    """

    class Beat(bootsteps.StartStopStep):  # type: ignore[misc]
        """Started after each connection; the loop's timer entries end with the connection."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            pulse.beat()
            parent.timer.call_repeatedly(pulse.interval_s, pulse.beat)

        def stop(self, parent: Any) -> None:
            pulse.rest()

        terminate = stop

    app.steps["consumer"].add(Beat)


class WatchedRelay:
    """A `RelayObserver` that beats at each event, of which every turn of the relay has one, and passes it on."""

    def __init__(self, observer: RelayObserver, pulse: Pulse) -> None:
        self._observer = observer
        self._pulse = pulse

    def sent(self, messages: int) -> None:
        self._pulse.beat()
        self._observer.sent(messages)

    def swept(self, leases_ended: int, resent: int, backlog: Backlog) -> None:
        self._pulse.beat()
        self._observer.swept(leases_ended, resent, backlog)

    def unavailable(self) -> None:
        self._pulse.beat()
        self._observer.unavailable()
