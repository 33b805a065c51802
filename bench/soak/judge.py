"""Findings of a soak, and their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import psutil

from bench.report import Report
from bench.soak.answers import AnswerBook, Wrong
from bench.soak.churn import Churn
from bench.soak.load import Load

_SHOWN = 5
#: Allowed growth of a role: a share, and MiB below which it is noise. Postgres' buffers and caches fill with the data.
LIMITS: Mapping[str, tuple[float, float]] = {"postgres": (0.25, 24.0), "broker": (0.25, 8.0)}
LIMIT = (0.05, 4.0)
#: MiB per hour in the second half, because a ratio hides small growth of a large process. Without a leak: 5.
STEADY_LIMIT = 20.0
#: More files or threads than this over the second quarter's mean are a leak. The API's thread pool may fill up.
MORE_HANDLES = 8


@dataclass(frozen=True)
class Options:
    """Options of a soak: `rows` in a batch, at most `solo_minutes` of solo runs before and after."""

    minutes: float = 30.0
    engine: str = "transformers"
    streams: int = 64
    rows: int = 48
    tenants: int = 4
    questions: int = 24
    lasting: int = 8
    administrators: int = 2
    pause_s: float = 6.0
    deadline_s: float = 120.0
    solo_minutes: float = 30.0


QUICK = Options(0.2, streams=8, rows=6, tenants=2, questions=6, lasting=2, administrators=1, pause_s=0, solo_minutes=2)


@dataclass
class Series:
    """Samples of a role: seconds since the load began; unique MiB (of Postgres: proportional MiB); handles."""

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
                continue  # remote, or being restarted; the next sample finds the new one
            # Postgres' sessions come and go.
            now = {one.pid for one in (family[:1] if role == "postgres" else family)}
            self.restarts += len(self._known.get(role, now) - now)
            self._known[role] = now
            usages = [usage for one in family if (usage := _usage(one, role == "postgres")) is not None]
            series = self.series.setdefault(role, Series())
            series.times.append(at_s)
            series.memory.append(sum(memory for memory, _ in usages))
            series.handles.append(sum(handles for _, handles in usages))


def _usage(process: psutil.Process, shared: bool) -> tuple[float, float] | None:
    """MiB and handles of a process; None if it has ended. Postgres' files do not count: a session opens all tables."""
    try:
        memory = process.memory_full_info()
        handles = process.num_threads() + (0 if shared else process.num_fds())
    except (psutil.Error, OSError):
        return None
    return (memory.pss if shared else memory.uss) / 2**20, handles


@dataclass
class Outcome:
    """All findings of a soak."""

    options: Options
    book: AnswerBook
    load: Load
    churn: Churn
    watch: Watch
    seconds: float = 0.0
    unanswered: int = 0  #: clients not done after the load
    open_jobs: int = 0
    unsent: int = 0
    misowned: list[str] = field(default_factory=list)  #: answers of versions that their tenant does not have
    errors: list[str] = field(default_factory=list)  #: solo runs that failed, and whatever ended the soak early
    wrong: list[Wrong] = field(default_factory=list)


def judge(outcome: Outcome) -> Report:
    """The report of a soak."""
    options = outcome.options
    report = Report(
        "soak",
        f"{outcome.seconds / 60:.1f} minutes on {options.engine}, {options.streams} streams over {options.rows} rows, "
        f"{options.tenants} tenants, {options.lasting} lasting profiles, {options.questions} questions",
    )
    _answers(report, outcome)
    _requests(report, outcome)
    report.add("processes that ended or were replaced", outcome.watch.restarts, most=0)
    for role, series in sorted(outcome.watch.series.items()):
        _growth(report, role, series, options.minutes)
    report.more["memory"] = {role: asdict(series) for role, series in outcome.watch.series.items()}
    return report


def _answers(report: Report, outcome: Outcome) -> None:
    compared, answered = outcome.book.counts()
    faults = [wrong for wrong in outcome.wrong if wrong.tie is None]
    ties = [wrong for wrong in outcome.wrong if wrong.tie is not None]
    report.add("answers compared with their solo run", compared, least=1)
    report.add("  share of all answers", compared / max(1, answered), least=0.99)
    report.add("wrong answers", sum(wrong.count for wrong in faults), most=0)
    report.add("answers that took the other side of a tie", sum(tie.count for tie in ties))
    report.add("answers under a wrong name, version or tenant", outcome.load.misnamed + len(outcome.misowned), most=0)
    report.add("solo runs and checks that failed", len(outcome.errors), most=0)
    report.details += [f"not checked: {text}" for text in outcome.errors[:_SHOWN]]
    report.details += [f"not in the database: {text}" for text in outcome.misowned[:_SHOWN]]
    report.details += [f"tie, {tie.count} times, at character {tie.at}: {tie.tie}" for tie in ties[:_SHOWN]]
    for wrong in faults[:_SHOWN]:
        report.details.append(
            f"wrong, {wrong.count} times, from character {wrong.at}: {wrong.identity}"
            f"\n  alone:  {wrong.expected.finish} {wrong.expected.text!r}"
            f"\n  loaded: {wrong.got.finish} {wrong.got.text!r}"
        )


def _requests(report: Report, outcome: Outcome) -> None:
    load, churn = outcome.load, outcome.churn
    report.add("requests a second", load.outcomes.total() / max(1e-9, outcome.seconds), unit="1/s")
    for name, count in sorted(load.outcomes.items()):
        fine = name in ("answered 200", "left 200") or name.endswith("expected")
        report.add(f"requests {name}", count, most=None if fine else 0)
    report.add("clients not done after the load", outcome.unanswered, most=0)
    for name, count in sorted(churn.done.items()):
        report.add(name, count)
    report.add("administrators' calls and fits that failed", len(churn.failures), most=0)
    report.add("jobs in no final state", outcome.open_jobs, most=0)
    report.add("messages not sent", outcome.unsent, most=0)
    report.details += [f"failed: {text}" for text in load.failures[:_SHOWN] + churn.failures[:_SHOWN]]
    for q in (50, 95):
        report.add(f"time to first token, p{q}", float(np.percentile(load.firsts or [0.0], q)), unit="s")


def _growth(report: Report, role: str, series: Series, minutes: float) -> None:
    """Adds last quarter ÷ second (judged in soaks of 5 minutes or more) and the second half's slope (20 or more)."""
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
