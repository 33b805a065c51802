"""The soak's judgements as one table, the same as JSON, and a picture of it over time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from bench.report import Report
from bench.soak_memory import LIMIT, LIMITS, MORE_HANDLES, STEADY_LIMIT, handle_growth, memory_growth

if TYPE_CHECKING:
    from bench.soak import Outcome
    from bench.soak_load import Sample

#: Memory of shorter runs is shown and not judged: caches are still filling.
JUDGED_FROM_MINUTES = 5.0
#: The slope of the second half is judged from here on; of Postgres it is not, whose buffers and sessions fill slowly.
STEADY_FROM_MINUTES = 20.0
#: The last quarter's p95 of the time to first token over the second quarter's; generous, because machines are shared.
SLOWER = 2.0
#: Outcomes that need no explanation.
WELL = ("answered 200", "left 200")
_SHOWN = 5


@dataclass
class Findings:
    """The table, and what of it failed."""

    report: Report
    failed: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def fact(self, what: str, value: float, unit: str = "") -> None:
        """A figure that is not judged."""
        self.report.add(what, value, unit)

    def judge(self, what: str, value: float, must: str, held: bool, unit: str = "") -> None:
        """A figure that must hold."""
        self.report.add(what, value, unit, must if held else f"{must}: FAILED")
        if not held:
            self.failed.append(what)

    def zero(self, what: str, value: float) -> None:
        """A figure that must be 0."""
        self.judge(what, value, "0", value == 0)

    def print(self) -> None:
        """Table, evidence and verdict on the console."""
        self.report.print()
        console = Console(highlight=False, markup=False)
        for detail in self.details:
            console.print(detail)
        console.print("FAILED: " + "; ".join(self.failed) if self.failed else "all of it held")


def findings(outcome: Outcome) -> Findings:
    """Judges a soak."""
    options = outcome.options
    title = (
        f"{outcome.seconds / 60:.1f} minutes on {options.engine}, {options.streams} streams over {options.rows} rows, "
        f"{options.tenants} tenants, {options.lasting} lasting profiles, {options.questions} questions"
    )
    found = Findings(Report("soak", title))
    _answers(found, outcome)
    _requests(found, outcome)
    _fits(found, outcome)
    _latency(found, outcome)
    _resources(found, outcome)
    return found


def _answers(found: Findings, outcome: Outcome) -> None:
    book, load = outcome.book, outcome.load
    ties = [wrong for wrong in outcome.wrong if wrong.tie is not None]
    faults = [wrong for wrong in outcome.wrong if wrong.tie is None]
    compared = book.compared
    share = compared / max(1, book.total)
    found.judge("answers compared with their solo run", compared, "≥ 1", compared > 0)
    found.judge("  share of all answers", share, "≥ 0.99", share >= 0.99)
    found.fact("  different requests among them", len(book.references()))
    found.zero("wrong answers", sum(wrong.count for wrong in faults))
    found.fact("answers that took the other side of a tie", sum(tie.count for tie in ties))
    found.zero("answers that disagree without a solo run", book.disagreements())
    found.zero("answers under a wrong name, version or tenant", load.misnamed + len(outcome.misowned))
    found.zero("solo runs that differ before and after the load", len(outcome.changed_alone))
    found.zero("solo runs and checks that failed", len(outcome.errors))
    found.details += [f"\nnot checked: {text}" for text in outcome.errors[:_SHOWN]]
    for wrong in faults[:_SHOWN]:
        found.details.append(
            f"\nwrong, {wrong.count} times, from character {wrong.at}: {wrong.identity}, question "
            f"{dict(load.world.questions[wrong.identity.question].body)}, for example {dict(wrong.example)}"
            f"\n  alone:  {wrong.expected.finish} {wrong.expected.text!r}"
            f"\n  loaded: {wrong.got.finish} {wrong.got.text!r}"
        )
    for tie in ties[:_SHOWN]:
        found.details.append(f"\ntie, {tie.count} times, at character {tie.at} of {tie.identity}: {tie.tie}")
    found.details += [f"\nnot in the database: {text}" for text in outcome.misowned[:_SHOWN]]
    found.details += [f"\nchanged: {text}" for text in outcome.changed_alone[:_SHOWN]]


def _requests(found: Findings, outcome: Outcome) -> None:
    load = outcome.load
    outcomes = load.outcomes
    bad = {name: count for name, count in outcomes.items() if name not in WELL}
    surprising = {name: count for name, count in bad.items() if not name.endswith("expected")}
    found.fact("requests", outcomes.total())
    found.fact("requests a second", outcomes.total() / max(1e-9, outcome.seconds), "1/s")
    if len(outcome.tokens) > 1:
        (first_s, first), (last_s, last) = outcome.tokens[0], outcome.tokens[-1]
        found.fact("tokens a second", (last - first) / (last_s - first_s), "tokens/s")
    for way, count in sorted(load.ways.items()):
        found.fact(f"  asked by {way}", count)
    found.fact("clients that hung up", outcomes["left 200"])
    found.fact("  of a profile that was being deleted, not compared", load.unattributed)
    found.fact("refused, because deleted or not ready", sum(bad.values()) - sum(surprising.values()))
    for name, count in sorted(surprising.items()):
        found.zero(f"requests {name}", count)
    found.zero("requests failed or stuck", sum(surprising.values()))
    found.zero("clients not done after the load", outcome.unanswered)
    found.zero("requests running or waiting in the API afterwards", outcome.busy)
    found.details += [f"\nfailed: {text}" for text in load.failures]


def _fits(found: Findings, outcome: Outcome) -> None:
    churn = outcome.churn
    for name, count in sorted(churn.done.items()):
        found.fact(name, count)
    for name, count in sorted(churn.jobs.items()):
        found.fact(f"  jobs {name}", count)
    found.zero("administrators' calls that failed", len(churn.failures))
    found.zero("jobs in no final state", outcome.open_jobs)
    found.zero("messages not sent", outcome.unsent)
    found.details += [f"\nadministration: {text}" for text in churn.failures[:_SHOWN]]


def _latency(found: Findings, outcome: Outcome) -> None:
    streamed = [sample for sample in outcome.load.samples if sample.first_s is not None]
    if not streamed:
        return
    seconds = [sample.first_s or 0.0 for sample in streamed]
    found.fact("time to first token, p50", float(np.percentile(seconds, 50)), "s")
    found.fact("  p95", float(np.percentile(seconds, 95)), "s")
    found.fact("  longest", max(seconds), "s")
    for whose, of in (
        ("the tenant with half of the clients", [s.first_s or 0.0 for s in streamed if s.tenant == 0]),
        ("the others", [s.first_s or 0.0 for s in streamed if s.tenant != 0]),
    ):
        if of:
            found.fact(f"  p95 of {whose}", float(np.percentile(of, 95)), "s")
    windows = first_token_windows(outcome.load.samples, outcome.seconds)
    quarter = len(windows) // 4
    if quarter:
        early = float(np.mean([w[2] for w in windows[quarter : 2 * quarter]]))
        late = float(np.mean([w[2] for w in windows[-quarter:]]))
        judged = outcome.options.minutes >= JUDGED_FROM_MINUTES
        what = "  p95 of the last quarter ÷ the second's"
        if judged:
            found.judge(what, late / early, f"≤ {SLOWER}", late <= SLOWER * early)
        else:
            found.fact(what, late / early)
    found.fact("longest pause of the load generator", outcome.load.worst_lag_s, "s")


def _resources(found: Findings, outcome: Outcome) -> None:
    found.zero("processes that ended or were replaced", outcome.watch.restarts)
    judged = outcome.options.minutes >= JUDGED_FROM_MINUTES
    long = outcome.options.minutes >= STEADY_FROM_MINUTES
    for role, series in sorted(outcome.watch.series.items()):
        try:
            grown, held = memory_growth(role, series)
        except ValueError:
            found.fact(f"{role}: too few samples", len(series.times))
            continue
        share, least = LIMITS.get(role, LIMIT)
        kind = "share of all" if role == "postgres" else "own memory"
        what = f"{role}: {kind}, last quarter ÷ second"
        if judged:
            found.judge(what, 1 + grown.share, f"≤ {1 + share:.2f} or + {least:.0f} MiB", held)
        else:
            found.fact(what, 1 + grown.share)
        found.fact("  straight line after the warm-up", grown.per_hour, "MiB/h")
        what = f"{role}: straight line through the second half"
        if long and role not in LIMITS:
            held = grown.late_per_hour <= STEADY_LIMIT
            found.judge(what, grown.late_per_hour, f"≤ {STEADY_LIMIT:.0f}", held, "MiB/h")
        else:
            found.fact(what, grown.late_per_hour, "MiB/h")
        found.fact("  mean of the last quarter", grown.late, "MiB")
        found.fact("  RSS at the end", series.usages[-1].rss, "MiB")
        more, few = handle_growth(role, series)
        what = "processes" if role == "postgres" else "open files or threads"
        found.judge(f"  more {what}", more, f"≤ {MORE_HANDLES}", few)
    if not judged:
        found.details.append(f"\nmemory and latency over time are judged from {JUDGED_FROM_MINUTES:.0f} minutes on")


def first_token_windows(samples: Sequence[Sample], seconds: float) -> list[tuple[float, float, float, float]]:
    """(middle of the window, p50, p95, longest) seconds to the first text, for about 60 windows of 5 s or more."""
    width = max(5.0, seconds / 60)
    windows = []
    for i in range(max(1, int(seconds / width))):
        of = [s.first_s for s in samples if s.first_s is not None and i * width <= s.at_s < (i + 1) * width]
        if of:
            p50, p95 = np.percentile(of, (50, 95))
            windows.append(((i + 0.5) * width, float(p50), float(p95), max(of)))
    return windows


def write(found: Findings, outcome: Outcome, folder: Path) -> Path:
    """`soak.json`: the table's rows, what failed, the evidence, and the series behind the plot."""
    path = found.report.save(folder)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    content |= {
        "options": asdict(outcome.options),
        "failed": found.failed,
        "details": [detail.strip() for detail in found.details],
        "outcomes": dict(outcome.load.outcomes),
        "first_token_s": first_token_windows(outcome.load.samples, outcome.seconds),
        "memory": {
            role: {"at_s": series.times, **{f: series.values(f) for f in ("rss", "pss", "private", "files", "threads")}}
            for role, series in outcome.watch.series.items()
        },
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def plot(found: Findings, outcome: Outcome, folder: Path) -> Path:
    """`soak.svg`: memory of each process, requests a second, time to first token; failures and wrong answers marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    samples, seconds = outcome.load.samples, outcome.seconds
    figure, (memory, rate, latency) = pyplot.subplots(3, 1, figsize=(10, 11), sharex=True, layout="constrained")
    figure.suptitle(found.report.title, fontsize=10)
    for role, series in sorted(outcome.watch.series.items()):
        name = "pss" if role == "postgres" else "private"
        values = np.array(series.values(name))
        quarter = values[len(values) // 4 : len(values) // 2 + 1].mean()
        memory.plot(np.array(series.times) / 60, values / quarter, label=f"{role} ({name}), {values[-1]:.0f} MiB")
    memory.set(ylabel="memory ÷ its mean in the second quarter", ylim=(0.7, 1.4))
    memory.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    width = max(5.0, seconds / 60)
    edges = np.arange(0, seconds + width, width)
    counts, _ = np.histogram([sample.at_s for sample in samples], edges)
    rate.step((edges[:-1] + width / 2) / 60, counts / width, where="mid", label="all", color="tab:blue")
    refused = [s.at_s / 60 for s in samples if s.outcome.endswith("expected")]
    if refused:
        rate.plot(refused, [0] * len(refused), "|", color="tab:gray", label="refused: deleted or not ready")
    failed = [s.at_s / 60 for s in samples if s.outcome not in WELL and not s.outcome.endswith("expected")]
    wrong = [w.example["at_s"] / 60 for w in outcome.wrong if w.tie is None]
    ties = [w.example["at_s"] / 60 for w in outcome.wrong if w.tie is not None]
    for times, label, mark in ((failed, "failed", "xr"), (wrong, "wrong answer", "Dm"), (ties, "tie", "og")):
        if times:
            rate.plot(times, [counts.max() / width * 0.1] * len(times), mark, label=label)
    rate.set(ylabel="requests a second", ylim=(0, None))
    rate.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    windows = np.array(first_token_windows(samples, seconds)).reshape(-1, 4)
    for column, label in ((3, "longest"), (2, "p95"), (1, "p50")):
        latency.plot(windows[:, 0] / 60, windows[:, column], label=label)
    latency.set(ylabel="time to first token (s)", xlabel="minutes", ylim=(0, None))
    latency.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "soak.svg"
    figure.savefig(path)
    pyplot.close(figure)
    return path
