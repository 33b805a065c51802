"""Inline SVG of the report page. Positions are in percent of the width, so text keeps its size on narrow screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

_HEIGHT = 180  #: height of a curve, px
_PAD = 6.0  #: margin left and right of a curve, percent


def text(value: object) -> str:
    """A value as escaped HTML text, also for attributes."""
    return escape(str(value), quote=True)


def signed(value: float) -> str:
    """A net win with sign and two decimals."""
    return f"{value:+.2f}"


def outcome_bar(win: int, tie: int, lose: int) -> str:
    """Shares of wins, ties and losses as one bar."""
    total = max(1, win + tie + lose)
    parts, x = [], 0.0
    for kind, count in (("win", win), ("tie", tie), ("lose", lose)):
        width = 100 * count / total
        if count:
            label = f'<text x="{x + width / 2:.2f}%" y="17" text-anchor="middle">{count}</text>' if width >= 7 else ""
            parts.append(
                f'<rect class="{kind}" x="{x:.2f}%" y="0" width="{width:.2f}%" height="24">'
                f"<title>{count} {kind}</title></rect>{label}"
            )
        x += width
    return _svg(24, "".join(parts), f"{win} wins, {tie} ties, {lose} losses")


def interval_bar(net: float, low: float, high: float) -> str:
    """A net win with its interval on a scale from −1 to +1."""
    at, left, right = _percent(net), _percent(low), _percent(high)
    body = (
        '<line class="axis" x1="0" x2="100%" y1="12" y2="12"/><line class="axis" x1="50%" x2="50%" y1="2" y2="22"/>'
        f'<line class="mark" x1="{left:.2f}%" x2="{right:.2f}%" y1="12" y2="12"/>'
        f'<circle class="dot" cx="{at:.2f}%" cy="12" r="5"/>'
    )
    return _svg(24, body, f"net win {signed(net)}, interval {signed(low)} to {signed(high)}")


def share_bar(share: float) -> str:
    """A share as a bar from 0 to 1."""
    width = 100 * min(1.0, max(0.0, share))
    body = f'<rect class="tie" width="100%" height="14"/><rect class="fill" width="{width:.2f}%" height="14"/>'
    return _svg(14, body, f"{share:.2f}")


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str) -> str:
    """Net wins (−1 to +1) by a setting, one line per series; four strokes alternate.

    Args:
        series: name → (setting, net win) points.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    lowest, highest = min(x for x, _ in points), max(x for x, _ in points)
    span = (highest - lowest) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return _PAD + (100 - 2 * _PAD) * (x - lowest) / span, 10 + (_HEIGHT - 40) * (1 - max(-1.0, min(1.0, y))) / 2

    body = []
    for level, name in ((1.0, "+1"), (0.0, "0"), (-1.0, "−1")):
        _, y = place(lowest, level)
        body.append(f'<line class="axis" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="small" x="0" y="{y - 2:.1f}">{name}</text>')
    for x in sorted({x for x, _ in points}):
        at, _ = place(x, 0)
        body.append(f'<text class="small" x="{at:.2f}%" y="{_HEIGHT - 8}" text-anchor="middle">{x:g}</text>')
    for number, (name, line) in enumerate(series.items()):
        placed = [place(x, y) for x, y in sorted(line)]
        stroke = f"line line{number % 4}"
        for (x1, y1), (x2, y2) in pairwise(placed):
            body.append(f'<line class="{stroke}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>')
        for (x, y), (px, py) in zip(sorted(line), placed, strict=True):
            body.append(
                f'<circle class="dot dot{number % 4}" cx="{px:.2f}%" cy="{py:.1f}" r="4">'
                f"<title>{text(name)}: {text(x_label)} {x:g}, net win {signed(y)}</title></circle>"
            )
    legend = ""
    if len(series) > 1:
        keys = "".join(f'<li><span class="key key{i % 4}"></span>{text(name)}</li>' for i, name in enumerate(series))
        legend = f'<ul class="legend">{keys}</ul>'
    drawn = _svg(_HEIGHT, "".join(body), f"net win by {x_label}")
    return f"<figure>{drawn}<figcaption>{text(x_label)}</figcaption>{legend}</figure>"


def _percent(net: float) -> float:
    return 50 + 50 * max(-1.0, min(1.0, net))


def _svg(height: int, body: str, label: str) -> str:
    return f'<svg width="100%" height="{height}" role="img" aria-label="{text(label)}">{body}</svg>'
