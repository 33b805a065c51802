"""The supervisor: what dies is started again, with growing pauses, and everything ends together."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cli.errors import StackError
from cli.local_stack.supervisor import RoleProcess, Supervisor


def role(tmp_path: Path, code: str, name: str = "role") -> RoleProcess:
    return RoleProcess(
        name, [sys.executable, "-c", code], dict(os.environ), tmp_path / f"{name}.log", lambda: True, grace_s=5
    )


def start(tmp_path: Path, child: RoleProcess) -> tuple[Supervisor, list[str], list[int]]:
    said: list[str] = []
    changes: list[int] = []
    supervisor = Supervisor(said.append, lambda: changes.append(1))
    supervisor.start(child.name, child, child.log)
    return supervisor, said, changes


def check_until(supervisor: Supervisor, condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        supervisor.check()
        time.sleep(0.02)


SLEEP = "import time; time.sleep(60)"


def test_a_killed_child_comes_back_under_a_new_process(tmp_path: Path) -> None:
    child = role(tmp_path, SLEEP)
    supervisor, said, changes = start(tmp_path, child)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    check_until(supervisor, lambda: changes)
    assert supervisor.pids()["role"] not in (None, first)
    assert "ended unexpectedly" in said[0]
    assert "runs again" in said[1]
    supervisor.stop()


def test_a_child_that_always_dies_is_tried_with_growing_pauses(tmp_path: Path) -> None:
    supervisor, said, _ = start(tmp_path, role(tmp_path, "raise SystemExit(3)"))
    check_until(supervisor, lambda: sum("ended unexpectedly" in line for line in said) >= 3)
    assert [line.split("again in ")[1].split(" s")[0] for line in said if "again in" in line][:3] == [
        "0.1",
        "0.2",
        "0.4",
    ]
    supervisor.stop()


def test_stopping_ends_children_and_grandchildren(tmp_path: Path) -> None:
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); time.sleep(60)"
    child = role(tmp_path, code)
    supervisor, _, _ = start(tmp_path, child)
    parent = psutil.Process(child.pid)
    check_until(supervisor, lambda: parent.children())
    family = [parent, *parent.children()]
    supervisor.stop()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert supervisor.pids() == {}


def test_a_child_that_ends_before_it_is_ready_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    child = role(tmp_path, "import sys; print('error: no model here', file=sys.stderr); sys.exit(1)")
    child.ready = lambda: False
    supervisor, _, _ = start(tmp_path, child)
    with pytest.raises(StackError, match="role did not start: no model here"):
        supervisor.wait_ready("role", 20)
    supervisor.stop()
