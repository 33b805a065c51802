"""Scans of processes pass over zombies: children of an earlier test that nobody has waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.worker.processes import children, command_line, runs


@pytest.fixture
def zombie() -> Iterator[psutil.Process]:
    """A child of this process that has ended and is not waited for."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    yield psutil.Process(ended.pid)
    ended.wait()


def test_a_zombie_is_no_running_child(zombie: psutil.Process) -> None:
    assert zombie in psutil.Process().children()
    assert zombie not in children(os.getpid())
    assert not runs(zombie)


def test_an_ended_process_has_no_command_line(zombie: psutil.Process) -> None:
    with pytest.raises(psutil.ZombieProcess):
        zombie.cmdline()
    assert command_line(zombie) == ""


def test_a_process_that_is_gone_has_no_children() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert children(gone.pid) == []
