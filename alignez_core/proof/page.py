"""A report as one self-contained HTML page: inline styles and SVG, no scripts, no external resources.

Imports no torch, because the API renders reports too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from alignez_core.proof.gate import MAX_COHERENCE, weak_reasons
from alignez_core.proof.pictures import curves, interval_bar, outcome_bar, share_bar, signed, text

_COMPARISONS = {
    "over_bare": "this version over the bare model",
    "over_prompt": "this version over the persona as a prompt",
    "prompt_over_bare": "the persona as a prompt over the bare model",
}
_SITUATIONS = {
    "alone": "the query alone",
    "own_system": "under a caller's own system message",
    "third_turn": "third turn of a conversation",
    "long": "long answers",
}
_ARMS = {"bare": "bare model", "prompt": "persona as a prompt", "edited": "this version"}
_MARKS = {1: "won", 0: "tied", -1: "lost"}
_CONTRAST = re.compile(r",? ?λ ([0-9.]+)")


def render(report: Mapping[str, Any], choice: Mapping[str, Any] | None, title: str) -> str:
    """The page of one proof.

    Args:
        report: result of `proof.report.prove`, with `explained`. `quality` and `reasons`, if present, are the stored
            verdict; otherwise the gate decides.
        choice: `FittedProfile.choice`; None for an evaluation, which has no choice.
        title: name of profile and version.
    """
    sections = [
        ("Wins, ties and losses", _wins(report)),
        ("Situations of real use", _situations(report)),
        ("Dose", _dose(report)),
        ("Choice", _choice(choice)),
        ("Gap that the edit closes", _explained(report)),
        ("Cost of a request", _cost(report)),
        ("Harmful and neutral queries", _slices(report)),
        ("Answers side by side", _answers(report)),
        ("Measurement", _measured(report)),
    ]
    body = "".join(f"<section><h2>{text(name)}</h2>{html}</section>" for name, html in sections if html)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style()}</style></head><body>"
        f"<h1>{text(title)}</h1>{_verdict(report)}{body}</body></html>"
    )


@cache
def style() -> str:
    """The page's stylesheet."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def verdict_line(report: Mapping[str, Any]) -> str:
    """The net wins of a report as plain text."""
    over_bare, over_prompt = (report["comparisons"][name] for name in ("over_bare", "over_prompt"))
    return (
        f"net win over the bare model {_net(over_bare)}, over the persona as a prompt {_net(over_prompt)}, "
        f"on {over_bare['n']} held-out queries"
    )


def _verdict(report: Mapping[str, Any]) -> str:
    reasons = report["reasons"] if "reasons" in report else weak_reasons(report)
    quality = report.get("quality") or ("weak" if reasons else "good")
    listed = "".join(f"<li>{text(reason)}</li>" for reason in reasons)
    return (
        f'<div class="verdict {"weak" if quality == "weak" else "good"}"><p><strong>{text(quality)}</strong>: '
        f"{text(verdict_line(report))}.</p>{f'<ul>{listed}</ul>' if listed else ''}</div>"
    )


def _wins(report: Mapping[str, Any]) -> str:
    parts = []
    for name, label in _COMPARISONS.items():
        row = report["comparisons"].get(name)
        if row is not None:
            parts.append(
                f'<div class="pair"><p>{text(label)}: <strong>{text(_net(row))}</strong></p>'
                f"{outcome_bar(row['win'], row['tie'], row['lose'])}{interval_bar(row['net'], *row['interval'])}</div>"
            )
    note = "Green: won, grey: tied, red: lost. The dot shows the net win from −1 to +1, the bar its 95 % interval."
    return f'{"".join(parts)}<p class="dim">{text(note)}</p>'


def _situations(report: Mapping[str, Any]) -> str:
    rows = []
    for row in report["situations"]:
        edited, bound = row["arms"]["edited"], row["repetition_bound"]
        rows.append(
            [
                text(_SITUATIONS.get(row["situation"], row["situation"])),
                _number(row["n"]),
                _number(_net(row["net_over_bare"])),
                _number(_net(row["net_over_prompt"])),
                _bounded(edited["coherence"], MAX_COHERENCE if row["situation"] == "alone" else None),
                _bounded(edited["repetition"], bound),
                _number(" / ".join(f"{row['arms'][arm]['words']:.0f}" for arm in _ARMS)),
            ]
        )
    heads = ["", "n", "net over bare", "net over prompt", "coherence (bound)", "repetition (bound)", "words"]
    note = (
        "Coherence: nats per token by which the answers are less likely than the prompted ones under the prompted "
        "model; only questions asked alone have a bound. Repetition: share of trigrams that occurred before. Words: "
        "mean length of the bare, the prompted and this version's answers."
    )
    return f'{_table(heads, rows)}<p class="dim">{text(note)}</p>' if rows else ""


def _dose(report: Mapping[str, Any]) -> str:
    points = [(float(row["strength"]), float(row["net_over_bare"])) for row in report.get("dose") or ()]
    return curves({"net win over bare": points}, "strength (net win over the bare model)") if points else ""


def _choice(choice: Mapping[str, Any] | None) -> str:
    if not choice:
        return ""
    trace, chosen = choice.get("trace") or [], choice.get("chosen", "")
    families: dict[str, list[tuple[float, float]]] = {}
    for row in trace:
        found = _CONTRAST.search(row["candidate"])
        if found and row["situation"] == "alone":
            family = _CONTRAST.sub("", row["candidate"], count=1)
            families.setdefault(family, []).append((float(found[1]), float(row["net_over_prompt"])))
    rows = [
        [
            f"<strong>{text(row['candidate'])}</strong>" if row["candidate"] == chosen else text(row["candidate"]),
            text(_SITUATIONS.get(row["situation"], row["situation"])),
            _number(signed(row["net_over_prompt"])),
            _number(signed(row["net_over_bare"])),
            _number(f"{row['coherence']:.2f}"),
            _bounded(row["repetition"], row["repetition_bound"]),
            text("yes") if row["within"] else '<span class="over">no</span>',
        ]
        for row in trace
    ]
    heads = ["candidate", "", "net over prompt", "net over bare", "coherence", "repetition (bound)", "within"]
    drawn = curves(families, "λ, distance of the target beyond the prompt (net win over the prompt, tune queries)")
    table = f"<details><summary>Every measurement</summary>{_table(heads, rows)}</details>" if rows else ""
    said = f"<p><strong>{text(chosen)}</strong>: {text(choice.get('reason', ''))}.</p>"
    return said + drawn + table


def _explained(report: Mapping[str, Any]) -> str:
    parts = []
    if kl := report.get("kl"):
        parts.append(
            f"<p>The edit closes <strong>{kl['closed']:.0%}</strong> of the divergence between the prompted and the "
            f"bare model: {kl['prompted_bare']:.3f} → {kl['prompted_edited']:.3f} nats per token (the edited model "
            f"diverges by {kl['edited_bare']:.3f} from the bare one).</p>"
        )
    if shares := report.get("explained"):
        rows = [
            [_number(layer), share_bar(float(share)), _number(f"{share:.2f}")]
            for layer, share in sorted(shares.items(), key=lambda item: int(item[0]))
        ]
        parts.append(
            _table(["layer", "share of the gap that the edit closes on other queries than it was fitted on", ""], rows)
        )
    return "".join(parts)


def _cost(report: Mapping[str, Any]) -> str:
    cost = report.get("cost") or {}
    bare = cost.get("bare")
    rows = [
        [
            text(label),
            _number(f"{cost[arm]['prompt_tokens']:g}"),
            _number(f"{cost[arm]['prompt_tokens'] - bare['prompt_tokens']:+g}" if bare else ""),
            _number(f"{cost[arm]['milliseconds']:.1f}"),
            _number(cost[arm]["new_tokens"]),
        ]
        for arm, label in _ARMS.items()
        if arm in cost
    ]
    heads = ["", "prompt tokens", "beyond bare", "ms per request", "new tokens"]
    return _table(heads, rows) if rows else ""


def _slices(report: Mapping[str, Any]) -> str:
    rows = [
        [text(name), _number(row["n"]), _number(f"{row['bare']:.0%}"), _number(f"{row['edited']:.0%}")]
        for name, row in (report.get("slices") or {}).items()
    ]
    return _table(["queries", "n", "bare model refuses", "this version refuses"], rows) if rows else ""


def _answers(report: Mapping[str, Any]) -> str:
    parts = []
    for row in report.get("samples") or ():
        marks = ", ".join(
            f"{_MARKS[row[name]]} {against}"
            for name, against in (("over_bare", "over bare"), ("over_prompt", "over prompt"))
        )
        columns = "".join(
            f"<div><b>{text(label)}{f' · {text(marks)}' if arm == 'edited' else ''}</b>{text(row[arm])}</div>"
            for arm, label in _ARMS.items()
        )
        parts.append(f'<div class="ask"><h3>{text(row["query"])}</h3><div class="three">{columns}</div></div>')
    return "".join(parts)


def _measured(report: Mapping[str, Any]) -> str:
    expressed = report.get("expressiveness") or {}
    facts = {
        "judge": report["judge"],
        "fallback": report.get("judge_fallback"),
        "method": report["method"],
        "candidate": report["candidate"],
        "held-out queries": report["n"],
        "seed": report["seed"],
        "temperature": report["temperature"],
        "persona over its opposite in prompted answers, nats per token": expressed.get("contrast"),
    }
    return _table(["", ""], [[text(name), text(value)] for name, value in facts.items() if value is not None])


def _net(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{signed(row['net'])} ({signed(low)} to {signed(high)})"


class _Number(str):
    """HTML of a table cell that is aligned as a number."""


def _number(value: object) -> _Number:
    return _Number(text(value))


def _bounded(value: float, bound: float | None) -> _Number:
    if bound is None:
        return _number(f"{value:.2f}")
    shown = text(f"{value:.2f} (≤ {bound:.2f})")
    return _Number(f'<span class="over">{shown} ✗</span>' if value > bound else shown)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; `rows` are HTML, `heads` plain text."""
    rows = list(rows)
    numbers = [any(isinstance(row[i], _Number) for row in rows) for i in range(len(heads))]
    head = "".join(f"<th{' class=n' if n else ''}>{text(h)}</th>" for h, n in zip(heads, numbers, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if isinstance(c, _Number) else ''}>{c}</td>" for c in row) + "</tr>"
        for row in rows
    )
    head_row = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table>{head_row}<tbody>{body}</tbody></table></div>'
