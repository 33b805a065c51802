"""Net wins with intervals over queries and seeds, and how results are shown: Markdown, bars, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignez_core.proof.measures import bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NetWin:
    """Verdicts of one arm against another, over queries and seeds.

    Args:
        queries, seeds: numbers of both; every seed has a verdict on every query.
        win, lose: shares of all verdicts.
        low, high: 95 % bootstrap interval of the net win, over queries: seeds of one query are no more queries.
    """

    queries: int
    seeds: int
    win: float
    lose: float
    low: float
    high: float

    @classmethod
    def of(cls, verdicts: Sequence[Sequence[int]]) -> NetWin:
        """Args: verdicts: (seeds, queries), +1 win, 0 tie, −1 loss; not empty."""
        rows = np.asarray(verdicts, dtype=np.float64)
        low, high = bootstrap_interval(rows.mean(axis=0).tolist())
        return cls(rows.shape[1], rows.shape[0], float((rows > 0).mean()), float((rows < 0).mean()), low, high)

    @property
    def net(self) -> float:
        """Wins − losses, as a share."""
        return self.win - self.lose

    def __str__(self) -> str:
        return signed(self.net, self.low, self.high)


def signed(value: float, low: float, high: float) -> str:
    """A value with its interval: "+0.25 (+0.03 to +0.47)"."""
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def relative_improvement(ours: float, aligned: float) -> str:
    """RI of section 4: 100 · net win ÷ the aligned model's; "–" where that is not above 0, as in Table 1."""
    return f"{100 * ours / aligned:.0f}" if aligned > 0 else "–"


def bars(groups: Sequence[str], nets: Mapping[str, Sequence[NetWin]], title: str, axis: str) -> Figure:
    """Grouped bars with intervals. Args: nets: arm → one net win per group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 1.6 * len(groups), 4.2), layout="constrained")
    plot = figure.subplots()
    width = 0.8 / max(1, len(nets))
    for i, (arm, found) in enumerate(nets.items()):
        at = np.arange(len(groups)) + (i - (len(nets) - 1) / 2) * width
        heights = np.array([each.net for each in found])
        reach = [heights - [each.low for each in found], np.array([each.high for each in found]) - heights]
        plot.bar(at, heights, width, yerr=np.maximum(0, reach), label=arm, error_kw={"linewidth": 0.8})
    plot.axhline(0, color="black", linewidth=0.8)
    plot.set(title=title, ylabel=axis, xticks=np.arange(len(groups)), xticklabels=list(groups), ylim=(-1.05, 1.05))
    plot.legend(frameon=False, fontsize="small", ncols=4, loc="lower center", bbox_to_anchor=(0.5, -0.35))
    return figure


def publish(folder: Path, name: str, markdown: str, figure: Figure | None = None) -> None:
    """Writes `name`.md and, with a figure, `name`.svg; prints the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    if figure is not None:
        figure.savefig(folder / f"{name}.svg")
    print(markdown, f"\nwritten to {folder}/{name}.*", flush=True)


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
