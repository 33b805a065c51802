"""The report's page: complete, self-contained, and safe whatever the texts hold."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from alignez_core.proof.page import render
from tests.reports import make_report

CHOICE = {
    "chosen": "4 layers, rank 3, λ 1",
    "reason": "largest net win",
    "trace": [
        {"candidate": f"4 layers, rank 3, λ {c:g}", "situation": where, "n": 12, "net_over_prompt": c / 4,
         "net_over_bare": 1.0, "coherence": 0.1, "repetition": 0.01, "repetition_bound": 0.07, "within": c < 2}
        for where in ("alone", "long") for c in (0.0, 1.0, 2.0)
    ],
}  # fmt: skip
VOID = {"meta"}


class Reader(HTMLParser):
    """Every element and all text; fails on a tag that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def read(report: dict[str, Any], choice: dict[str, Any] | None = CHOICE, title: str = "p, version 1") -> Reader:
    reader = Reader()
    reader.feed(render(report, choice, title))
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_tells_everything_that_was_measured() -> None:
    page = read(make_report()).text
    for part in (
        "p, version 1", "good", "net win over the bare model +0.62 (+0.25 to +1.00)",
        "over the persona as a prompt +0.00 (-0.50 to +0.50)", "on 8 held-out queries",
        "under a caller's own system message", "0.02 (≤ 0.08)", "0.10 (≤ 0.40)", "closes 60% of the divergence",
        "4 layers, rank 3, λ 1", "largest net win", "won over bare, tied over prompt", "What is a good way to cook?",
        "harmful", "neutral", "prompt tokens", "judge", "self", "seed",
    ):  # fmt: skip
        assert part in page, part


def test_pictures_are_drawn_from_the_numbers() -> None:
    seen = read(make_report()).seen
    labels = [attributes.get("aria-label") for tag, attributes in seen if tag == "svg"]
    assert "6 wins, 1 ties, 1 losses" in labels
    assert "net win +0.62, interval +0.25 to +1.00" in labels
    assert ("rect", {"class": "win", "x": "0.00%", "y": "0", "width": "75.00%", "height": "24"}) in seen
    # The two layers that the edit explains .4 and .6 of.
    assert [a["width"] for tag, a in seen if tag == "rect" and a.get("class") == "fill"] == ["40.00%", "60.00%"]
    # Dose: four strengths; λ: three settings on single turns.
    assert sum(tag == "circle" and (a.get("class") or "").startswith("dot dot") for tag, a in seen) == 4 + 3


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page = render(make_report(), CHOICE, "t")
    assert not re.search(r"<script|<link|<img|<iframe|<object|@import|url\(|https?:|\son\w+=", page)


NASTY = "</style><script>alert('x')</script>\" onload=\"y & <b>"


def everywhere(value: Any) -> Any:
    """The same structure with every text in it replaced."""
    if isinstance(value, dict):
        return {key: everywhere(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [everywhere(inner) for inner in value]
    return NASTY if isinstance(value, str) else value


def test_every_text_is_escaped() -> None:
    report = {**everywhere(make_report()), "reasons": [NASTY], "quality": "weak", "judge_fallback": NASTY}
    plain = {tag for tag, _ in read(make_report()).seen} | {"ul", "li", "h3"}
    reader = read(report, everywhere(CHOICE), NASTY)
    assert {tag for tag, _ in reader.seen} <= plain | {"strong"}
    assert not any("onload" in attributes for _, attributes in reader.seen)
    assert reader.text.count("alert('x')") > 10


def test_a_weak_verdict_lists_the_stored_reasons_and_else_the_gates_own() -> None:
    stored = read({**make_report(), "quality": "weak", "reasons": ["the sides look swapped"]}).text
    assert "weak" in stored
    assert "the sides look swapped" in stored
    report = make_report()
    report["comparisons"]["over_bare"] = {"n": 8, "win": 4, "tie": 0, "lose": 4, "net": 0.0, "interval": [-0.5, 0.5]}
    assert "+0.20 is needed" in read(report).text


def test_what_is_over_its_bound_is_marked_where_it_is_bounded() -> None:
    report = make_report()
    alone, late = report["situations"][0], report["situations"][2]
    for row, gap in ((alone, 0.9), (late, 0.8)):
        row["arms"] = {**row["arms"], "edited": {"coherence": gap, "repetition": 0.3, "words": 9.0}}
    assert "0.90 (≤ 0.40) ✗" in read(report).text
    assert "0.30 (≤ 0.08) ✗" in read(report).text
    assert "0.80 (≤" not in read(report).text


@pytest.mark.parametrize("missing", [("kl", None), ("dose", []), ("cost", {}), ("explained", {}), ("slices", {}),
                                     ("samples", []), ("situations", []), ("expressiveness", None)])  # fmt: skip
def test_what_was_not_measured_is_left_out(missing: tuple[str, Any]) -> None:
    name, nothing = missing
    read({**make_report(), name: nothing}, None)


def test_a_process_without_torch_can_make_the_page() -> None:
    code = "import sys, alignez_core.proof.page, api.profiles.proof_routes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
