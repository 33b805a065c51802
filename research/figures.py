"""Net wins with intervals over queries and seeds, and the bars that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESAMPLES = 2000


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
        low, high = interval(rows.mean(axis=0))
        return cls(rows.shape[1], rows.shape[0], float((rows > 0).mean()), float((rows < 0).mean()), low, high)

    @property
    def net(self) -> float:
        """Wins − losses, as a share."""
        return self.win - self.lose

    def __str__(self) -> str:
        return signed(self.net, self.low, self.high)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; (nan, nan) without values."""
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(0, len(rows), size=(_RESAMPLES, len(rows)))
    low, high = np.percentile(rows[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


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
