"""A short soak of the real stack."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.soak import Options, run
from bench.soak_answers import Answer
from bench.soak_report import findings, plot, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = Options(
    minutes=0.6, streams=12, rows=8, tenants=2, questions=6, lasting=2, fit_queries=16, pause_s=0, deadline_s=90,
    solo_minutes=4,
)  # fmt: skip


def test_a_short_soak_compares_answers_and_finds_none_wrong(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    outcome = run(SHORT, say=False)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    found = findings(outcome)
    assert found.failed == [], found.details
    assert outcome.book.compared >= 20
    assert outcome.churn.jobs["succeeded"] >= 2
    assert set(outcome.watch.series) >= {"api", "worker", "worker child", "relay", "postgres", "broker"}
    stored = json.loads(write(found, outcome, tmp_path).read_text())
    assert stored["failed"] == []
    assert plot(found, outcome, tmp_path).read_text().count("<svg") == 1

    identity, reference = next(iter(outcome.book.references().items()))
    outcome.book.observe(identity, Answer(reference.text[::-1], reference.finish), {"at_s": 1.0})
    outcome.wrong = outcome.book.wrong()
    assert findings(outcome).failed == ["wrong answers"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT is not ignored: a job in the background starts with it ignored, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_nothing_running() -> None:
    soak = subprocess.Popen([sys.executable, "-m", "bench.soak", "--lasting", "1"], stdout=subprocess.PIPE, text=True)
    family: list[psutil.Process] = []
    try:
        assert soak.stdout is not None
        assert "the stack is up" in soak.stdout.readline()
        family = psutil.Process(soak.pid).children(recursive=True)
        assert len(family) > 5
        soak.send_signal(signal.SIGINT)
        soak.communicate(timeout=90)
        assert soak.returncode == 130
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
    finally:
        for process in [soak, *(child for child in family if child.is_running())]:
            process.kill()
