"""Processes of the product for measurements: started with their settings, watched for the processor time they take."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil

from cli.local_stack import process
from cli.local_stack.supervisor import RoleProcess

_START_S = 120.0


class Roles:
    """Starts processes on one database and broker; a context that ends them all.

    Args:
        folder: of their logs. settings: environment variables that all of them get.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = settings
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self) -> Roles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def apis(self, count: int, step_s: float, places: int) -> dict[int, int]:
        """Port → process id of so many API processes that are ready."""
        ports = [process.free_port() for _ in range(count)]
        started = [
            self._start(
                ["bench.replica_api", str(step_s), str(places)],
                {"ALIGNEZ_API_PORT": str(port)},
                partial(_answers, port),
            )
            for port in ports
        ]
        return dict(zip(ports, self._ready(started), strict=True))

    def workers(self, count: int, model: str) -> list[int]:
        """Process ids of so many workers that are ready."""
        return self._ready([self._with_flag("worker", {"ALIGNEZ_WORKER_MODEL": model}) for _ in range(count)])

    def relay(self) -> int:
        """Process id of a relay that runs."""
        return self._ready([self._with_flag("relay", {})])[0]

    def _with_flag(self, role: str, settings: Mapping[str, str]) -> RoleProcess:
        flag = self._folder / f"{role}-{self._count}.ready"
        flag.unlink(missing_ok=True)
        return self._start(["cli.main", role, "--ready-file", str(flag)], settings, flag.exists)

    def _start(self, module: Sequence[str], settings: Mapping[str, str], ready: Callable[[], bool]) -> RoleProcess:
        name = f"{module[0].rsplit('.', 1)[-1]}-{self._count}"
        self._count += 1
        role = RoleProcess(
            name,
            [sys.executable, "-m", *module],
            {**os.environ, "OMP_NUM_THREADS": "1", **self._settings, **settings},
            self._folder / f"{name}.log",
            ready,
        )
        role.start()
        self._stack.callback(role.stop)
        self._stack.callback(role.ask_to_stop)
        return role

    def _ready(self, roles: Iterable[RoleProcess]) -> list[int]:
        pids = []
        for role in roles:
            deadline = time.monotonic() + _START_S
            while not role.is_ready():
                if role.pid is None or time.monotonic() > deadline:
                    raise RuntimeError(f"{role.name} did not start:\n{process.tail(role.log)}")
                time.sleep(0.05)
            pids.append(role.pid or 0)
        return pids


def cpu_s(pids: Iterable[int]) -> float:
    """Processor seconds so far of processes and all that they have started."""
    total = 0.0
    for pid in pids:
        root = psutil.Process(pid)
        for one in (root, *root.children(recursive=True)):
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue  # it ended just now; its parent has its time
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
