"""The committed module diagrams are those of the code."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "diagram.py"


def test_the_diagrams_are_current() -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["PAGE"].read_text(encoding="utf-8") == script["render"](), "run: make diagram"
