"""A proof as text for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.shell import print_uncut

_ROWS = {
    "over_bare": "over the bare model",
    "over_prompt": "over the persona as a prompt",
    "prompt_over_bare": "the prompt over the bare model",
}
_ARMS = {"bare": "bare model", "prompt": "persona as a prompt", "edited": "this version"}


def print_verdict(console: Console, proof: dict[str, Any]) -> None:
    """Net wins with their intervals, what was chosen, the cost of a request, and why a version is weak.

    Args:
        proof: the answer of `GET …/report`.
    """
    report = proof["report"]
    colour = "green" if proof["quality"] == "good" else "yellow"
    judged = f" (judge {proof['judge']}, {report['n']} held-out queries)"
    console.print(Text.assemble((f"{proof['quality']}", f"bold {colour}"), judged))
    for reason in proof["reasons"]:
        console.print(f"  - {reason}", markup=False)
    if fallback := report.get("judge_fallback"):
        console.print(f"  judged by self: {fallback}", markup=False)
    print_uncut(console, _wins(report))
    if choice := proof.get("choice"):
        console.print(f"  chosen: {choice['chosen']} ({choice['reason']})", markup=False)
    for line in _cost(report.get("cost") or {}):
        console.print(f"  {line}", markup=False)


def _wins(report: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    for heading in ("  net win", "", "95 % interval", "won", "tied", "lost"):
        table.add_column(heading, justify="left" if heading in ("  net win", "95 % interval") else "right")
    for name, label in _ROWS.items():
        row = report["comparisons"][name]
        low, high = row["interval"]
        cells = [f"  {label}", f"{row['net']:+.2f}", f"{low:+.2f} to {high:+.2f}"]
        table.add_row(*(Text(cell) for cell in [*cells, *(str(row[kind]) for kind in ("win", "tie", "lose"))]))
    return table


def _cost(cost: dict[str, Any]) -> list[str]:
    """One line an arm."""
    bare = cost.get("bare", {}).get("prompt_tokens")
    lines = []
    for arm, label in _ARMS.items():
        if arm in cost:
            tokens, spent = cost[arm]["prompt_tokens"], cost[arm]["milliseconds"]
            more = "" if bare is None or arm == "bare" else f" ({tokens - bare:+g})"
            new = cost[arm]["new_tokens"]
            lines.append(f"cost, {label}: {tokens:g} prompt tokens{more}, {spent:.1f} ms with {new} new tokens")
    return lines


def shares(targets: dict[str, float]) -> str:
    """The versions of an alias: `2`, or `1 (90%) / 2 (10%)`."""
    if len(targets) == 1:
        return next(iter(targets))
    return " / ".join(f"{number} ({share:.0%})" for number, share in targets.items())
