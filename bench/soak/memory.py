"""Memory, open files and threads of every process of a running stack over time, and the verdict on their growth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import psutil

from bench.report import Report

#: Allowed growth of a role: a share, and MiB below which it is noise. Postgres' shared buffers (64 MB) and its
#: sessions' caches fill with the data; the others have nothing that may grow.
LIMITS: Mapping[str, tuple[float, float]] = {"postgres": (0.25, 24.0), "broker": (0.25, 8.0)}
LIMIT = (0.05, 4.0)
#: MiB an hour over the second half, which a share of a big process hides. Measured without a leak: 5.
STEADY_LIMIT = 20.0
#: More files or threads than this over the second quarter's mean are a leak. The API's thread pool may fill up.
MORE_HANDLES = 8


@dataclass
class Series:
    """A role over time: seconds since the load began; MiB of its own (of Postgres: its share of all); handles."""

    times: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    handles: list[float] = field(default_factory=list)


class Watch:
    """Samples a stack's processes. `restarts` counts those that ended or were replaced."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.restarts = 0
        self._known: dict[str, set[int]] = {}

    def sample(self, at_s: float, pids: Mapping[str, int | None]) -> None:
        """Takes one sample of all roles, role → process. A role's descendants belong to it."""
        for role, pid in pids.items():
            try:
                process = psutil.Process(pid or -1)
                family = [process, *process.children(recursive=True)]
            except (psutil.NoSuchProcess, ValueError):
                continue  # not ours, or the supervisor starts another, which the next sample finds
            # Postgres' sessions come and go.
            now = {one.pid for one in (family[:1] if role == "postgres" else family)}
            self.restarts += len(self._known.get(role, now) - now)
            self._known[role] = now
            usages = [usage for one in family if (usage := _usage(one, role == "postgres")) is not None]
            series = self.series.setdefault(role, Series())
            series.times.append(at_s)
            series.memory.append(sum(memory for memory, _ in usages))
            series.handles.append(sum(handles for _, handles in usages))


def judge_growth(report: Report, role: str, series: Series, minutes: float) -> None:
    """Adds the last quarter over the second, judged from 5 minutes on, and the slope of the second half, from 20 on."""
    times = np.asarray(series.times)
    memory, handles = np.asarray(series.memory), np.asarray(series.handles)
    second, half, last = (
        (times >= times[-1] / 4) & (times < times[-1] / 2),
        times >= times[-1] / 2,
        times >= times[-1] * 0.75,
    )
    if min(second.sum(), last.sum()) < 2:
        report.add(f"{role}: too few samples", len(times))
        return
    share, least = LIMITS.get(role, LIMIT)
    early, late = float(memory[second].mean()), float(memory[last].mean())
    most = 1 + max(share, least / early) if minutes >= 5 else None
    report.add(f"{role}: memory, last quarter ÷ second", late / early, most=most)
    report.add("  mean of the last quarter", late, unit="MiB")
    slope = float(np.polyfit(times[half], memory[half], 1)[0]) * 3600
    judged = minutes >= 20 and role not in LIMITS
    report.add("  straight line through the second half", slope, unit="MiB/h", most=STEADY_LIMIT if judged else None)
    more = float(handles[last].mean() - handles[second].mean())
    report.add("  more open files and threads", more, most=MORE_HANDLES)


def _usage(process: psutil.Process, shared: bool) -> tuple[float, float] | None:
    """MiB and handles of a process; None when it has just ended. Postgres' sessions open the files of all tables."""
    try:
        memory = process.memory_full_info()
        handles = process.num_threads() + (0 if shared else process.num_fds())
    except (psutil.Error, OSError):
        return None
    return (memory.pss if shared else memory.uss) / 2**20, handles
