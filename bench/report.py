"""The report of every measurement: a table of figures and their bounds, printed and saved as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """Values for the report's columns, or for the first of them; `must` is the bound of the last value."""

    figure: str
    values: tuple[float | None, ...]
    unit: str
    must: str
    held: bool


@dataclass
class Report:
    """Figures with their bounds."""

    name: str  #: of the JSON file
    title: str
    columns: Sequence[str] = ("value",)
    rows: list[Row] = field(default_factory=list)
    details: list[str] = field(default_factory=list)  #: evidence, printed below the table
    more: dict[str, Any] = field(default_factory=dict)  #: further content of the JSON file

    def add(
        self, figure: str, *values: float | None, unit: str = "", least: float | None = None, most: float | None = None
    ) -> None:
        """Appends a row; `least` and `most` bound its last value, both inclusive."""
        last = float("nan") if values[-1] is None else values[-1]
        held = (least is None or last >= least) and (most is None or last <= most)
        must = " and ".join(f"{sign} {bound:g}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None)
        self.rows.append(Row(figure, values, unit, must, held))

    def add_by_count(self, what: str, by_count: Mapping[int, Mapping[str, float]]) -> None:
        """Appends each figure for every number of processes, then its ratios to the first; see `count_columns`."""
        for figure in next(iter(by_count.values())):
            first, *others = (figures[figure] for figures in by_count.values())
            self.add(f"{what}: {figure}", first, *others, *(value / first if first else None for value in others))

    @property
    def failed(self) -> list[str]:
        """Figures that miss their bounds."""
        return [row.figure.strip() for row in self.rows if not row.held]

    def show(self, folder: Path) -> None:
        """Prints the table and the missed bounds; writes `<name>.json`."""
        table = Table("figure", title=f"{self.name}: {self.title}", title_justify="left")
        for column in (*self.columns, "unit", "must"):
            table.add_column(column, justify="right" if column in self.columns else "left", no_wrap=True)
        for row in self.rows:
            cells = [*map(_cell, row.values), *[""] * (len(self.columns) - len(row.values))]
            table.add_row(row.figure, *cells, row.unit, row.must if row.held else f"{row.must}: MISSED")
        console = Console(highlight=False, markup=False)
        console.width = max(console.width, 130 + 12 * len(self.columns))
        console.print(table, *self.details, sep="\n")
        path = folder / f"{self.name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "machine": platform.machine(), **self.more}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"missed: {'; '.join(self.failed) or 'nothing'}\nwritten to {path}", flush=True)


def count_columns(counts: Sequence[int]) -> list[str]:
    """Columns for `add_by_count`: each number of processes, then its ratio to the first."""
    return [*map(str, counts), *(f"{count} ÷ {counts[0]}" for count in counts[1:])]


def options(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of every measurement. From here on SIGTERM ends a run, with its processes, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: small sizes, figures mean little")
    parser.add_argument("--out", type=Path, default=Path("artifacts/bench"), help="folder of results (%(default)s)")
    return parser


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.3f}" if abs(value) < 1000 and value != int(value) else f"{value:,.0f}"
