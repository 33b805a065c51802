"""The table of effects: means over seeds, and where the judge and the measures of style have one sign."""

from __future__ import annotations

from typing import Any

from research.effect_table import agreement


def row(persona: str, net: float, bare: float, prompt: float, edited: float) -> dict[str, Any]:
    nets = {"over_bare": net, "over_prompt": -net, "prompt_over_bare": net}
    return {
        "persona": persona,
        "comparisons": {key: {"net": value} for key, value in nets.items()},
        "style": {"bare": bare, "prompt": prompt, "edited": edited},
    }


def test_agreement_is_counted_by_persona_and_names_who_does_not() -> None:
    rows = [row("pirate", 0.6, 0.1, 0.5, 0.9), row("pirate", -0.2, 0.1, 0.5, 0.9), row("formal", 0.4, 0.2, 0.3, 0.1)]
    assert agreement(rows).splitlines() == [
        "over_bare: judge and style agree in sign on 1 of 2 (not: formal +0.40, style -0.100)",
        "over_prompt: judge and style agree in sign on 1 of 2 (not: pirate -0.20, style +0.400)",
        "prompt_over_bare: judge and style agree in sign on 2 of 2",
    ]


def test_no_difference_is_no_agreement() -> None:
    assert "on 0 of 1" in agreement([row("pirate", 0.0, 0.1, 0.5, 0.9)])
