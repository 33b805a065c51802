"""What `bench.serving` prints and keeps: one table, its figures as JSON, and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from bench.report import Report
from bench.serving_latency import Latency
from bench.serving_sweep import Cell
from bench.serving_systems import HuggingFace, PlainVLLM, Transformers

mpl.use("Agg")
import matplotlib.pyplot as plt

OURS = {"TransformersEngine": "#2f6fb0", "VLLMEngine": "#b5403b"}
THEIRS = ("#8e8e93", "#7fb38a", "#f0b429", "#a48cc4")


class Results:
    """The cells of a sweep, and the ratios between them."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = {(cell.system.name, cell.profiles): cell for cell in cells}
        self.systems = list(dict.fromkeys(cell.system for cell in cells))
        self.counts = sorted({cell.profiles for cell in cells})

    def rate(self, name: str, profiles: int) -> float | None:
        """Median tokens per second."""
        cell = self._cells.get((name, profiles))
        return None if cell is None else statistics.median(cell.rates)

    def ratio(self, above: tuple[str, int], below: tuple[str, int]) -> float | None:
        """Median over rounds of the two rates' quotient."""
        if above not in self._cells or below not in self._cells:
            return None
        pairs = zip(self._cells[above].rates, self._cells[below].rates, strict=True)
        return statistics.median(a / b for a, b in pairs)

    def relative(self, name: str, profiles: int) -> float | None:
        """The rate over that of the system's own run without profiles."""
        return self.ratio((name, profiles), (self.unsteered(name), 0))

    def unsteered(self, name: str) -> str:
        """The system whose run without profiles is this one's."""
        return next(system.unsteered or name for system in self.systems if system.name == name)


def report_of(results: Results, latency: Sequence[Latency], same: Mapping[str, float], title: str) -> Report:
    """Every figure, those that DESIGN §9 and the issue ask for with what they must be."""
    report = Report("serving", title)

    def add(what: str, value: float | None, unit: str = "", must: str = "") -> None:
        if value is not None:
            report.add(what, value, unit, must)

    for system in results.systems:
        for count in results.counts:
            add(f"{system.name}, {count} profiles", results.rate(system.name, count), "tokens/s")
    for system in results.systems:
        for count in results.counts[1:]:
            must = _MUST.get(system.name, "") if count == _many(results) else ""
            add(f"{system.name}, {count} profiles ÷ 0", results.relative(system.name, count), "", must)
    most = results.counts[-1]
    for name in OURS:
        add(f"{name}, {most} profiles ÷ 1", results.ratio((name, most), (name, 1)), "", "≥ 0.95")
    generate, plain, transformers = HuggingFace.name, PlainVLLM.name, Transformers.name
    add("TransformersEngine ÷ generate, 0 profiles", results.ratio((transformers, 0), (generate, 0)), "", "≥ 0.9")
    for count in results.counts:
        must = _MUST["VLLMEngine"] if count == _many(results) else ""
        add(f"VLLMEngine, {count} profiles ÷ plain vLLM", results.ratio(("VLLMEngine", count), (plain, 0)), "", must)
    for name, share in same.items():
        add(f"same tokens, {name}", share)
    for row in latency:
        for what, value in row.percentiles_ms().items():
            add(f"{row.engine}, {row.streams} streams, {what}", value, "ms")
    return report


def table_of(report: Report, results: Results, latency: Sequence[Latency], same: Mapping[str, float]) -> Table:
    """The same to be read: a line per system, then latency, then what is asked for."""
    many = _many(results)
    table = Table(title=f"serving: {report.title}", title_justify="left")
    table.add_column("distinct profiles: tokens/s (÷ own 0)", no_wrap=True)
    table.add_column("edits")
    for column in (*map(str, results.counts), f"{many} ÷ generate", "same tokens"):
        table.add_column(column, justify="right")
    for system in results.systems:
        cells = []
        for count in results.counts:
            rate, relative = results.rate(system.name, count), results.relative(system.name, count)
            cells.append("" if rate is None else f"{rate:,.0f}" + (f" ({relative:.2f})" if count and relative else ""))
        top = (system.name, 0 if system.edits == "none" else many)
        against, share = results.ratio(top, (HuggingFace.name, 0)), same.get(system.name)
        table.add_row(
            system.name,
            system.edits,
            *cells,
            "" if against is None else f"{against:.2f}",
            "" if share is None else f"{share:.0%}",
        )
    table.add_section()
    table.add_row("latency: p50 / p95, ms", "", "first", "between")
    for row in latency:
        first50, first95, between50, between95 = row.percentiles_ms().values()
        table.add_row(
            f"{row.engine}, streams: {row.streams}",
            "answer",
            f"{first50:.1f} / {first95:.1f}",
            f"{between50:.1f} / {between95:.1f}",
        )
    table.add_section()
    for what, value, _, must in report.rows:
        if must:
            table.add_row(what, "", f"{value:.3f}", f"must: {must}")
    return table


def draw(results: Results, out: Path) -> None:
    """Throughput against the number of distinct profiles, each system relative to its own run without any."""
    mpl.rcParams["svg.hashsalt"] = "alignez"
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    steered = [system for system in results.systems if system.edits != "none"]
    others = iter(THEIRS)
    for system in steered:
        values = [1.0, *(results.relative(system.name, count) for count in results.counts[1:])]
        ours = system.name in OURS
        axes.plot(
            range(len(values)),
            [float("nan") if value is None else value for value in values],
            marker="o",
            color=OURS[system.name] if ours else next(others),
            linewidth=2.4 if ours else 1.4,
            linestyle="-" if ours else "--",
            label=system.name,
        )
    axes.set_xticks(range(len(results.counts)), [str(count) for count in results.counts])
    axes.set_xlabel("distinct profiles among the requests")
    axes.set_ylabel("tokens/s ÷ the same without profiles")
    axes.set_ylim(0, None)
    axes.grid(axis="y", color="#e5e5ea")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def write(report: Report, table: Table, left_out: Mapping[str, str], results: Results, folder: Path) -> None:
    """Prints the table and what it lacks, writes serving.json and serving.svg."""
    Console(width=max(150, Console().width)).print(table)
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    path = report.save(folder)
    draw(results, folder / "serving.svg")
    print(f"written to {path} and {folder / 'serving.svg'}")


_MUST = {"TransformersEngine": "≥ 0.95", "VLLMEngine": "≥ 0.97"}


def _many(results: Results) -> int:
    """The largest number of profiles but one: as many as rows."""
    return results.counts[-2]
