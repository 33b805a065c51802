"""Rate at which the live streams of a process send."""

from __future__ import annotations


class Pace:
    """Spreads the sends of all live streams so that together they stay under a rate.

    With one stream the gap is nothing; with many, tokens that arrive within the gap leave in one send. The first
    token of an answer never waits.
    """

    def __init__(self, max_sends_per_s: int) -> None:
        self._least_gap_s = 1.0 / max_sends_per_s
        self._live = 0

    @property
    def gap_s(self) -> float:
        """Seconds between two sends of one stream."""
        # A handful of streams is no load: holding tokens back would cost latency and win nothing.
        return self._live * self._least_gap_s if self._live > 4 else 0.0

    def enter(self) -> None:
        """Registers a live stream."""
        self._live += 1

    def leave(self) -> None:
        """Unregisters a live stream."""
        self._live -= 1
