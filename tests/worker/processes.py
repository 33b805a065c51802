"""Real worker and relay processes for fault tests: started, killed with SIGKILL, watched through the database."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from profiles.errors import DatabaseUnavailable
from profiles.models import Job
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork

_ROOT = Path(__file__).parents[2]

T = TypeVar("T")

WORKER = "worker"
RELAY = "worker.relay"


@dataclass
class Processes:
    """Starts `python -m …` on one database and broker; `close` kills what is left, children first."""

    database_url: str
    broker_url: str
    queue: str
    logs: Path
    step_s: float = 0.01
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, module: str, *, model: str | None = None, settings: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A worker or relay with short pauses; `settings` are further variables of its environment."""
        log = self.logs / f"{module}-{len(self._started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                start_new_session=True,
                env=os.environ
                | {
                    "ALIGNEZ_DATABASE_URL": self.database_url,
                    "ALIGNEZ_BROKER_URL": self.broker_url,
                    "ALIGNEZ_WORKER_MODEL": model or f"fake:?step_s={self.step_s}",
                    "ALIGNEZ_WORKER_QUEUE": self.queue,
                    "ALIGNEZ_WORKER_LEASE_S": "2",
                    "ALIGNEZ_WORKER_RELAY_SWEEP_S": "0.3",
                    "ALIGNEZ_WORKER_RELAY_RESEND_S": "2",
                    "OMP_NUM_THREADS": "1",
                    "PYTHONWARNINGS": "ignore",
                    **(settings or {}),
                },
            )
        self._started.append(process)
        return process

    def log(self) -> str:
        """Everything the processes have written."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.logs.glob("*.log")))

    def close(self) -> None:
        for process in self._started:
            kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process and all its children, the children last, so that nobody restarts or reports them."""
    if process.poll() is None:
        started = children(process.pid)
        process.kill()
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait(10)


def runs(process: psutil.Process) -> bool:
    """False for a process that has ended, also for a zombie, whose parent has not waited for it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def children(pid: int, *, recursive: bool = True) -> list[psutil.Process]:
    """Processes that a process has started, directly or not, and that run."""
    try:
        return [child for child in psutil.Process(pid).children(recursive=recursive) if runs(child)]
    except psutil.NoSuchProcess:
        return []


def command_line(process: psutil.Process) -> str:
    """Program and arguments; empty for a process that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie's too: psutil.ZombieProcess is one
        return ""


def model_process(worker: subprocess.Popen[bytes]) -> psutil.Process:
    """The child that holds the model."""
    (child,) = children(worker.pid, recursive=False)
    return child


def terminate(process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> int:
    """SIGTERM to the one process, as Kubernetes sends it; returns the exit status."""
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout_s)


def wait_for(look: Callable[[], T | None], timeout_s: float = 60.0, what: str = "it") -> T:
    """The first result that is not None or False; a database that is away is waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            found = look()
        except DatabaseUnavailable:
            found = None
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not happen in {timeout_s:g} s")


def job_of(sessions: SessionFactory, job: Job) -> Job:
    """The job as it is now."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        return uow.session.get_one(Job, job.id)
