"""A measurement that is told to stop leaves nothing running."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.worker.processes import children, command_line, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_sigterm_ends_a_measurement_with_its_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "burst", "--out", str(tmp_path)]
    bench = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: any("cli.main api" in command_line(child) for child in children(bench.pid)), 90)
        family = children(bench.pid)
        bench.terminate()
        assert bench.wait(60) != 0
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
    finally:
        for process in [bench, *(child for child in family if child.is_running())]:
            process.kill()
