"""One table per measurement, printed and kept as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass
class Report:
    """Rows of (what, value, unit, what it must hold)."""

    name: str
    title: str
    rows: list[tuple[str, float, str, str]] = field(default_factory=list)

    def add(self, what: str, value: float, unit: str = "", must: str = "") -> None:
        """Appends one figure; `must` is the requirement as text, judged by the reader."""
        self.rows.append((what, float(value), unit, must))

    def add_by_count(self, table: Table, what: str, figures: Mapping[str, tuple[str, Mapping[int, float]]]) -> None:
        """Appends each figure at each number of processes, and to `table` one row a figure, with ratios to the first.

        Args:
            table: columns: the figure, one for each count, one for each ratio. figures: name → unit, count → value.
        """
        for i, (figure, (unit, values)) in enumerate(figures.items()):
            for count, value in values.items():
                self.add(f"{what}, {count}: {figure}", value, unit)
            first, *others = values.values()
            cells = [f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in values.values()]
            ratios = [f"{value / first:.2f}" if first else "" for value in others]
            table.add_row(f"  {figure} {unit}".rstrip() if i else f"{what}: {figure}", *cells, *ratios)

    def judged(self) -> Report:
        """Only the rows that must hold something: for a report whose figures are printed in a table of their own."""
        return Report(self.name, self.title, [row for row in self.rows if row[3]])

    def print(self) -> None:
        """The table on the console."""
        table = Table(title=f"{self.name}: {self.title}", title_justify="left")
        for column in ("figure", "value", "unit", "must"):
            table.add_column(column, justify="right" if column == "value" else "left")
        for what, value, unit, must in self.rows:
            table.add_row(what, f"{value:,.3f}" if value < 1000 else f"{value:,.0f}", unit, must)
        Console().print(table)

    def save(self, folder: Path) -> Path:
        """The same as JSON, with the machine's kind, in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        content: dict[str, Any] = {
            "name": self.name,
            "title": self.title,
            "machine": platform.machine(),
            "rows": [{"figure": w, "value": v, "unit": u, "must": m} for w, v, u, m in self.rows],
        }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path
