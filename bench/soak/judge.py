"""What a soak found out, and what of it must hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from bench.report import Report
from bench.soak.answers import AnswerBook, Wrong
from bench.soak.churn import Churn
from bench.soak.load import Load
from bench.soak.memory import Watch, judge_growth

_SHOWN = 5


@dataclass(frozen=True)
class Options:
    """How a soak runs: `rows` in a batch, at most `solo_minutes` of solo runs before and after."""

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
    seed: int = 0


QUICK = Options(0.2, streams=8, rows=6, tenants=2, questions=6, lasting=2, administrators=1, pause_s=0, solo_minutes=2)


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
    """The table of a soak."""
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
        judge_growth(report, role, series, options.minutes)
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
    if len(load.firsts) < 40:
        return
    times, seconds = np.array(load.firsts).T
    for q in (50, 95):
        report.add(f"time to first token, p{q}", float(np.percentile(seconds, q)), unit="s")
    quarter = times / times.max() * 4
    early, late = (np.percentile(seconds[(quarter >= q) & (quarter <= q + 1)], 95) for q in (1, 3))
    most = 2 if outcome.options.minutes >= 5 else None  # generous, because machines are shared
    report.add("  p95 of the last quarter ÷ the second's", float(late / early), most=most)
