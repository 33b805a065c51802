"""A short soak of the real stack."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from bench.soak.answers import Answer
from bench.soak.judge import QUICK, judge
from bench.soak.run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_short_soak_compares_answers_and_finds_none_wrong() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    outcome = run(QUICK)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    report = judge(outcome)
    assert report.failed == [], report.details
    assert outcome.book.counts()[0] >= 20
    assert outcome.churn.done["fits succeeded"] > QUICK.lasting
    assert set(outcome.watch.series) >= {"api", "worker", "relay", "postgres", "broker"}

    identity, reference = next(iter(outcome.book.references.items()))
    outcome.book.observe(identity, Answer(reference.text[::-1], reference.finish))
    outcome.wrong = outcome.book.wrong()
    assert judge(outcome).failed == ["wrong answers"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT is not ignored: a job in the background starts with it ignored, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_nothing_running() -> None:
    soak = subprocess.Popen([sys.executable, "-m", "bench.soak"], stdout=subprocess.PIPE, text=True)
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
