"""A made-up proof for tests of what shows, stores and serves one."""

from __future__ import annotations

from typing import Any


def make_report(method: str = "distill", judge: str = "self") -> dict[str, Any]:
    """A report with every key that `proof.report.prove` makes."""
    won = {"n": 8, "win": 6, "tie": 1, "lose": 1, "net": 0.625, "interval": [0.25, 1.0]}
    even = {"n": 8, "win": 3, "tie": 2, "lose": 3, "net": 0.0, "interval": [-0.5, 0.5]}
    arms = {arm: {"coherence": 0.1, "repetition": 0.02, "words": 20.0} for arm in ("bare", "prompt", "edited")}
    situation = {
        "n": 8,
        "net_over_bare": won,
        "net_over_prompt": even,
        "prompt_over_bare": won,
        "repetition_bound": 0.08,
    }
    return {
        "judge": judge,
        "candidate": "the made-up one",
        "method": method,
        "n": 8,
        "seed": 0,
        "temperature": 0.8,
        "comparisons": {"over_bare": won, "over_prompt": even, "prompt_over_bare": won},
        "expressiveness": {"contrast": 0.05, "effect": 1.4},
        "situations": [{"situation": name, **situation, "arms": arms} for name in ("alone", "own_system", "long")],
        "kl": {"prompted_bare": 0.2, "prompted_edited": 0.08, "edited_bare": 0.1, "closed": 0.6},
        "dose": [{"strength": s, "net_over_bare": s / 2, "n": 8} for s in (0.0, 0.5, 1.0, 1.5)],
        "slices": {name: {"bare": 0.5, "edited": 0.5, "n": 6} for name in ("harmful", "neutral")},
        "cost": {a: {"prompt_tokens": 9.0, "milliseconds": 3.5, "new_tokens": 8} for a in ("bare", "prompt", "edited")},
        "samples": [
            {
                "query": "What is a good way to cook?",
                "bare": "Boil.",
                "prompt": "Boil!",
                "edited": "Yay!",
                "over_bare": 1,
                "over_prompt": 0,
            }
        ],
        "explained": {"1": 0.4, "3": 0.6},
    }
