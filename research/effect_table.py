"""The rows of `research.effect` as a Markdown table, and the agreement of the judge with the measures of style."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from research import figures

_HEAD = (
    "persona", "seeds", "chosen", "net over bare", "over prompt", "coherence", "repetition (bound)",
    "style bare / prompt / edited", "own system", "third turn", "200 tokens", "KL closed", "quality",
)  # fmt: skip
#: Comparison → the two arms whose measures of style are compared.
_COMPARED = {
    "over_bare": ("edited", "bare"),
    "over_prompt": ("edited", "prompt"),
    "prompt_over_bare": ("prompt", "bare"),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per persona with means over its seeds, and a line of means; situations: net over prompt (repetition)."""
    names = dict.fromkeys(row["persona"] for row in rows)
    lines = [_cells(name, [row for row in rows if row["persona"] == name]) for name in names]
    return figures.table(_HEAD, [*lines, _cells("**mean**", rows)])


def agreement(rows: Sequence[dict[str, Any]]) -> str:
    """By comparison, the number of personas whose judged net win and measure of style have the same sign."""
    lines = []
    for key, (a, b) in _COMPARED.items():
        disagree, names = [], list(dict.fromkeys(row["persona"] for row in rows))
        for name in names:
            found = [row for row in rows if row["persona"] == name]
            net = _mean([row["comparisons"][key]["net"] for row in found])
            style = _mean([row["style"][a] - row["style"][b] for row in found])
            if net * style <= 0:
                disagree.append(f"{name} {net:+.2f}, style {style:+.3f}")
        but = f" (not: {'; '.join(disagree)})" if disagree else ""
        lines.append(f"{key}: judge and style agree in sign on {len(names) - len(disagree)} of {len(names)}{but}")
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One fit as a line of a log."""
    nets = ", ".join(f"{key} {row['comparisons'][key]['net']:+.2f}" for key in ("over_bare", "over_prompt"))
    return (
        f"{row['persona']} seed {row['seed']}: {row['quality']}, {nets}, style {row['style']}, {row['chosen']}, "
        f"{row['seconds']} s {row['reasons']}"
    )


def _cells(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    plain = [row["situations"][0] for row in rows]
    cells = [name, str(len({row["seed"] for row in rows}))]
    cells.append("" if name.startswith("*") else "; ".join(dict.fromkeys(row["chosen"] for row in rows)))
    cells += [f"{_mean([r['comparisons'][k]['net'] for r in rows]):+.2f}" for k in ("over_bare", "over_prompt")]
    cells.append(f"{_mean([s['arms']['edited']['coherence'] for s in plain]):+.2f}")
    bound = _mean([s["repetition_bound"] for s in plain])
    cells.append(f"{_mean([s['arms']['edited']['repetition'] for s in plain]):.2f} ({bound:.2f})")
    cells.append(" / ".join(f"{_mean([r['style'][arm] for r in rows]):.2f}" for arm in ("bare", "prompt", "edited")))
    for situation in ("own_system", "third_turn", "long"):
        found = [s for row in rows for s in row["situations"] if s["situation"] == situation]
        repeats = _mean([s["arms"]["edited"]["repetition"] for s in found])
        cells.append(f"{_mean([s['net_over_prompt']['net'] for s in found]):+.2f} ({repeats:.2f})")
    cells.append(f"{_mean([row['kl']['closed'] for row in rows if row['kl']]):.2f}")
    cells.append(f"{sum(row['quality'] == 'good' for row in rows)} of {len(rows)} good")
    return cells


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
