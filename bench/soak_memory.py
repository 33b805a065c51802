"""Memory, open files and threads of every process of a running stack, over time, and the verdict on their growth."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

_FIELD = re.compile(r"^(Rss|Pss|Private_Clean|Private_Dirty):\s+(\d+) kB", re.MULTILINE)

#: What the growth of a role may be: share, and MiB below which it is noise. Postgres' shared buffers (64 MB) and its
#: sessions' caches fill with the data; the others have nothing that may grow.
LIMITS: Mapping[str, tuple[float, float]] = {"postgres": (0.25, 24.0), "broker": (0.25, 8.0)}
LIMIT = (0.05, 4.0)
#: MiB an hour over the second half of a long run: what a share of a big process hides. Measured without a leak: 5.
STEADY_LIMIT = 20.0
#: More files or threads than this over the second quarter's mean are a leak. The API's thread pool may fill up.
MORE_HANDLES = 8


@dataclass(frozen=True)
class Usage:
    """One role at one moment; sums over its processes, in MiB. `private` is what only these processes have (USS)."""

    rss: float
    pss: float
    private: float
    files: int
    threads: int


@dataclass
class Series:
    """One role over time: seconds since the load began, and what was found then."""

    times: list[float] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """One field of all samples."""
        return [float(getattr(usage, name)) for usage in self.usages]


class Watch:
    """Samples a stack's processes."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self._known: dict[str, set[int]] = {}
        #: Processes that ended or were replaced: none should be.
        self.restarts = 0

    def sample(self, at_s: float, pids: Mapping[str, int | None]) -> None:
        """Takes one sample of all roles.

        Args:
            pids: role → process, as `run.json` has them now. A role's descendants are a role of their own ("worker
                child"), but Postgres' sessions, which come and go, belong to "postgres".
        """
        for role, pid in pids.items():
            if pid is None:
                continue
            try:
                process = psutil.Process(pid)
                children = process.children(recursive=True)
            except psutil.NoSuchProcess:
                continue  # the supervisor starts another, which the next sample finds
            self._follow(role, {pid} if role == "postgres" else {pid, *(child.pid for child in children)})
            if role == "postgres":
                self._add(role, at_s, [process, *children])
                continue
            self._add(role, at_s, [process])
            if children:
                self._add(f"{role} child", at_s, children)

    def _follow(self, role: str, found: set[int]) -> None:
        self.restarts += len(self._known.get(role, found) - found)
        self._known[role] = found

    def _add(self, role: str, at_s: float, processes: Sequence[psutil.Process]) -> None:
        usages = [usage for process in processes if (usage := usage_of(process)) is not None]
        series = self.series.setdefault(role, Series())
        series.times.append(at_s)
        series.usages.append(
            Usage(
                sum(usage.rss for usage in usages),
                sum(usage.pss for usage in usages),
                sum(usage.private for usage in usages),
                sum(usage.files for usage in usages),
                sum(usage.threads for usage in usages),
            )
        )


def usage_of(process: psutil.Process) -> Usage | None:
    """A process's memory and handles; None when it has just ended, or may not be looked at."""
    with contextlib.suppress(psutil.Error, OSError):
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        kilobytes = {name: int(value) for name, value in _FIELD.findall(text)}
        private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        return Usage(
            kilobytes["Rss"] / 1024,
            kilobytes["Pss"] / 1024,
            private / 1024,
            process.num_fds(),
            process.num_threads(),
        )
    return None


@dataclass(frozen=True)
class Growth:
    """How a quantity changed after the warm-up.

    Args:
        early, late: means of the second and the last quarter of the time.
        per_hour: slope of a straight line through everything after the first fifth.
        late_per_hour: of one through the second half.
    """

    early: float
    late: float
    per_hour: float
    late_per_hour: float

    @property
    def share(self) -> float:
        """By how much the last quarter is over the second, as a share of it."""
        return self.late / self.early - 1 if self.early else 0.0

    def leaks(self, share: float, least: float) -> bool:
        """Whether it grew by more than a share and by more than `least`, which is noise."""
        return self.share > share and self.late - self.early > least


def growth(times: Sequence[float], values: Sequence[float]) -> Growth:
    """Growth over a run.

    Args:
        times: N seconds, ascending. values: N.
    Raises: ValueError: too few samples for quarters.
    """
    t, v = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    if len(t) < 8:
        raise ValueError(f"{len(t)} samples are too few to judge growth by")
    share = (t - t[0]) / (t[-1] - t[0])
    early = v[(share >= 0.25) & (share < 0.5)].mean()
    late = v[share >= 0.75].mean()
    slope, late_slope = (float(np.polyfit(t[share >= start], v[share >= start], 1)[0]) * 3600 for start in (0.2, 0.5))
    return Growth(float(early), float(late), slope, late_slope)


def memory_growth(role: str, series: Series) -> tuple[Growth, bool]:
    """The growth of a role's own memory (of Postgres: its share of everything), and whether it is within its limit."""
    grown = growth(series.times, series.values("pss" if role == "postgres" else "private"))
    return grown, not grown.leaks(*LIMITS.get(role, LIMIT))


def handle_growth(role: str, series: Series) -> tuple[float, bool]:
    """By how many the open files and threads of a role grew (whichever more), and whether that is within the limit.

    Of Postgres only processes count: a session opens the file of each table that it meets.
    """
    names = ("threads",) if role == "postgres" else ("files", "threads")
    grown = [growth(series.times, series.values(name)) for name in names]
    more = max(found.late - found.early for found in grown)
    return more, more <= MORE_HANDLES
