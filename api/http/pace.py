"""Limits the rate at which the live streams of a process send."""

from __future__ import annotations


class Pace:
    """Spaces the sends of all live streams to keep their total below a rate.

    With few streams there is no gap; with many, tokens that arrive within the gap are sent together. The first token
    of an answer never waits.
    """

    def __init__(self, max_sends_per_s: int) -> None:
        self._least_gap_s = 1.0 / max_sends_per_s
        self._live = 0

    @property
    def gap_s(self) -> float:
        """Minimum seconds between two sends of one stream."""
        # A few streams are no load: delaying their tokens would only add latency.
        return self._live * self._least_gap_s if self._live > 4 else 0.0

    def enter(self) -> None:
        """Registers a live stream."""
        self._live += 1

    def leave(self) -> None:
        """Unregisters a live stream."""
        self._live -= 1
