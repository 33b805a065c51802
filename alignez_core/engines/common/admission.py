"""The queue of waiting requests: its bound, and fair turns between groups of requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Waits(Protocol):
    """A waiting request."""

    @property
    def group(self) -> str | None:
        """Fairness group of the request."""
        ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cache_tokens(self) -> int:
        """Maximum number of tokens in the request's key/value cache."""
        ...

    @property
    def cancelled(self) -> bool:
        """True once its caller has given up."""
        ...


W = TypeVar("W", bound=Waits)


def may_wait(live: int, places: int, max_waiting: int, group_waits: bool) -> bool:
    """True if an engine takes one more request.

    Args:
        live: requests that run and wait now. places: how many can run. max_waiting: how many more may wait; 0: none.
        group_waits: whether the asker has one waiting already; a full queue takes the first of those who have none, or
            one caller could shut all others out.
    """
    return live < places + max_waiting or (max_waiting > 0 and not group_waits)


@dataclass
class _Line(Generic[W]):
    """The requests of one group, first come first served.

    Attributes:
        overtaken: requests of other groups admitted since this line's first had its turn but did not fit.
    """

    rows: deque[W] = field(default_factory=deque)
    overtaken: int = 0


class FairQueue(Generic[W]):
    """The group with the fewest requests running goes first, and equals take turns; within a group the first to come is
    the first to go. So a newcomer has the next free place, however many places and waiting requests another group has.

    A request for which there is no room now holds up its own group only, until `patience` requests of others have
    overtaken it: then it is the next to be admitted, so that room becomes free and small requests cannot starve it.

    Not thread-safe: its owner holds a lock.
    """

    def __init__(self, patience: int = 32) -> None:
        self._patience = patience
        # In the order of their turns: a group that was served, or is new, goes to the end of its equals.
        self._lines: dict[str | None, _Line[W]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting_of(self, group: str | None) -> int:
        """Number of waiting requests of one group."""
        line = self._lines.get(group)
        return 0 if line is None else len(line.rows)

    def add(self, rows: Iterable[W]) -> None:
        """Puts each row at the end of its group's line."""
        for row in rows:
            self._lines.setdefault(row.group, _Line()).rows.append(row)
            self._count += 1

    def first(self, running: Mapping[str | None, int], room: int | None = None, longest: int | None = None) -> W | None:
        """The next row to admit, or None when no waiting row may be admitted.

        Args:
            running: how many requests of each group have a place.
            room: cache tokens that are free; None: no end of them.
            longest: tokens that a prompt may have now; None: any number. A longer one keeps its turn.
        """
        # A stable sort: equal groups keep their order of turns.
        self._lines = dict(sorted(self._lines.items(), key=lambda item: running.get(item[0], 0)))
        lines: Iterable[_Line[W]] = self._lines.values()
        if room is not None:
            patient = [line for line in lines if line.overtaken >= self._patience]
            lines = patient[:1] or lines
        for line in lines:
            row = line.rows[0]
            if (room is None or row.cache_tokens <= room) and (longest is None or row.prompt_tokens <= longest):
                return row
        return None

    def remove(self, row: W, room: int | None = None) -> None:
        """Takes out the row that `first` has named, given the same room; its group's next turn comes last."""
        group = row.group
        for name, line in self._lines.items():
            if name == group:
                break
            if room is not None and line.rows[0].cache_tokens > room:
                line.overtaken += 1
        line = self._lines.pop(group)
        line.rows.popleft()
        line.overtaken = 0
        if line.rows:
            self._lines[group] = line
        self._count -= 1

    def drop_cancelled(self) -> None:
        """Removes the cancelled rows."""
        for group, line in list(self._lines.items()):
            if any(row.cancelled for row in line.rows):
                if line.rows[0].cancelled:
                    line.overtaken = 0
                line.rows = deque(row for row in line.rows if not row.cancelled)
                if not line.rows:
                    del self._lines[group]
        self._count = sum(len(line.rows) for line in self._lines.values())

    def clear(self) -> list[W]:
        """Empties every line; returns what waited there."""
        rows = [row for line in self._lines.values() for row in line.rows]
        self._lines, self._count = {}, 0
        return rows
