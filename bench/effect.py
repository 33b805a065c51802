"""The picture of what edits do to persona-nano: `python -m bench.effect RESULTS.json docs/effect.svg`.

RESULTS.json comes from `python -m research.persona_nano.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

BARS = {
    "base model": ("base model", "#c7c7cc"),
    "alignez, L=5, K=10": ("alignez (the paper)", "#f0b429"),
    "auto": ("auto (ours)", "#2f6fb0"),
    "persona as a prompt": ("persona as a prompt", "#7fb38a"),
}
DOSES = {0.0: "base model", 0.5: "auto, strength 0.5", 1.0: "auto", 1.5: "auto, strength 1.5"}


def share(rows: list[dict[str, float]], key: str = "preferred") -> float:
    """Mean over seeds."""
    return statistics.mean(row[key] for row in rows)


def draw(results: dict[str, Any], out: Path) -> None:
    """Bars per persona on the left, the dose on the right."""
    personas: dict[str, dict[str, list[dict[str, float]]]] = {}
    for by_persona in results["runs"].values():
        for name, found in by_persona.items():
            for row, shares in found["rows"].items():
                personas.setdefault(name, {}).setdefault(row, []).append(shares)
    mpl.rcParams["svg.hashsalt"] = "alignez"
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.2), width_ratios=(2.1, 1), layout="constrained"
    )  # fmt: skip
    width = 0.2
    for i, (row, (label, colour)) in enumerate(BARS.items()):
        at = [x + (i - 1.5) * width for x in range(len(personas))]
        left.bar(at, [share(found[row]) for found in personas.values()], width, label=label, color=colour)
    left.set_xticks(range(len(personas)), [name.replace("/", "\nnot ") for name in personas], fontsize=9)
    left.set_ylabel("share of answers in the preferred style")
    left.set_ylim(0, 1.18)
    left.legend(ncols=4, fontsize=9, frameon=False, loc="upper center")
    for key, colour in (("preferred", "#2f6fb0"), ("dispreferred", "#b5403b"), ("none", "#8e8e93")):
        mean = [statistics.mean(share(found[row], key) for found in personas.values()) for row in DOSES.values()]
        right.plot(list(DOSES), mean, marker="o", color=colour, label="unrecognised" if key == "none" else key)
    right.set_xlabel("strength of auto")
    right.set_ylim(0, 1)
    right.legend(fontsize=9, frameon=False, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text(encoding="utf-8")), options.out)


if __name__ == "__main__":
    main()
