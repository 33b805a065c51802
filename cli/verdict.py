"""Output of a proof on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from cli.shell import new_table, print_uncut

_ROWS = {
    "over_bare": "over the bare model",
    "over_prompt": "over the persona as a prompt",
    "prompt_over_bare": "the prompt over the bare model",
}
_HEADINGS = ("  net win", "", "95 % interval", "won", "tied", "lost")
_ARMS = {"bare": "bare model", "prompt": "persona as a prompt", "edited": "this version"}


def print_verdict(console: Console, proof: dict[str, Any]) -> None:
    """Prints the quality with its reasons, net wins with their intervals, the chosen edit and the cost of a request.

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
    table = new_table(_HEADINGS, right=("", "won", "tied", "lost"), padding=2)
    for name, label in _ROWS.items():
        row = report["comparisons"][name]
        low, high = row["interval"]
        counts = [str(row[kind]) for kind in ("win", "tie", "lose")]
        table.add_row(*map(Text, (f"  {label}", f"{row['net']:+.2f}", f"{low:+.2f} to {high:+.2f}", *counts)))
    print_uncut(console, table)
    if choice := proof.get("choice"):
        console.print(f"  chosen: {choice['chosen']} ({choice['reason']})", markup=False)
    for line in _cost(report.get("cost") or {}):
        console.print(f"  {line}", markup=False)


def _cost(cost: dict[str, Any]) -> list[str]:
    """The cost of a request, a line for each arm."""
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
    """The versions of an alias, as `2` or `1 (90%) / 2 (10%)`."""
    if len(targets) == 1:
        return next(iter(targets))
    return " / ".join(f"{number} ({share:.0%})" for number, share in targets.items())
