"""Runs a set of child processes: starts them in order, restarts those that end, stops all in reverse order."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cli.errors import ServerDidNotStart, StackError
from cli.local_stack import process

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
#: After a child ran this long, its next restart has the shortest pause again.
_STEADY_S = 20.0


class Child(Protocol):
    """An embedded server or a role of the product, run as a process."""

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not run."""

    def start(self) -> object:
        """Starts the process, with the same port and configuration at every start."""

    def is_ready(self) -> bool:
        """True when the process does its work."""

    def ask_to_stop(self) -> None:
        """Tells the process to end, without waiting."""

    def stop(self) -> None:
        """Ends the process and everything that it started."""


@dataclass
class RoleProcess:
    """A role of the product as a child process.

    Args:
        argv: program and arguments. env: the whole environment.
        ready: returns True when the process does its work; called while it runs.
        before_start: called before each start.
        grace_s: seconds from SIGTERM to SIGKILL.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    before_start: Callable[[], None] = lambda: None
    grace_s: float = 15.0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        self._reap()
        self.before_start()
        # SIGKILL when this process dies: the product tolerates the loss of any process, and nobody waits for its end.
        self._process = process.spawn(self.argv, log=self.log, death_signal=signal.SIGKILL, env=self.env)

    def is_ready(self) -> bool:
        return self.pid is not None and self.ready()

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self._process is not None:
            # A second SIGTERM would make uvicorn and Celery stop at once.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.grace_s)
        self._reap()

    def _reap(self) -> None:
        """Ends the processes that a dead one left in its session, such as a worker's pool child."""
        if self._process is not None:
            process.kill_session(self._process)
            self._process = None


@dataclass
class _Watched:
    """A child with its restart history (monotonic seconds)."""

    name: str
    child: Child
    log: Path
    started: float
    pause_s: float = _FIRST_PAUSE_S
    restart_at: float | None = None


class Supervisor:
    """Runs children. Call all methods from one long-lived thread: children die with the thread that started them.

    Args:
        report: called with one line per event: a child ended, or runs again.
        changed: called after a child got a new process id.
    """

    def __init__(self, report: Callable[[str], None], changed: Callable[[], None] = lambda: None) -> None:
        self._report = report
        self._changed = changed
        self._watched: list[_Watched] = []

    def pids(self) -> dict[str, int | None]:
        """Name → process id, in the order of starting."""
        return {watched.name: watched.child.pid for watched in self._watched}

    def start(self, name: str, child: Child, log: Path) -> None:
        """Starts a child and watches it from then on; see `wait_ready`."""
        self._watched.append(_Watched(name, child, log, time.monotonic()))
        child.start()

    def wait_ready(self, name: str, timeout_s: float) -> None:
        """Waits until a started child is ready.

        Raises: StackError: it ended first, or did not become ready in time.
        """
        watched = next(entry for entry in self._watched if entry.name == name)
        deadline = time.monotonic() + timeout_s
        while not watched.child.is_ready():
            if watched.child.pid is None:
                raise _gave_up(name, watched.log)
            if time.monotonic() > deadline:
                reason = f"not ready after {timeout_s:.0f} s"
                raise ServerDidNotStart(name, reason, str(watched.log), process.tail(watched.log))
            time.sleep(0.2)

    def check(self) -> None:
        """Checks every child once: schedules a restart of those that ended, restarts those whose pause is over."""
        for watched in self._watched:
            now = time.monotonic()
            if watched.restart_at is None:
                if watched.child.pid is None:
                    self._schedule(watched, now, "ended unexpectedly")
            elif now >= watched.restart_at:
                self._restart(watched)

    def stop(self) -> None:
        """Ends all children, the last started first; tells all to stop before it waits for the first."""
        for watched in reversed(self._watched):
            watched.child.ask_to_stop()
        for watched in reversed(self._watched):
            watched.child.stop()
        self._watched.clear()

    def _schedule(self, watched: _Watched, now: float, what: str) -> None:
        if now - watched.started > _STEADY_S:
            watched.pause_s = _FIRST_PAUSE_S
        watched.restart_at = now + watched.pause_s
        self._report(f"{watched.name} {what}; starting it again in {watched.pause_s:.1f} s (log: {watched.log})")
        watched.pause_s = min(2 * watched.pause_s, _LONGEST_PAUSE_S)

    def _restart(self, watched: _Watched) -> None:
        watched.started = time.monotonic()
        try:
            watched.child.start()
        except (StackError, OSError) as error:
            self._schedule(watched, time.monotonic(), f"did not start ({str(error).splitlines()[0]})")
            return
        watched.restart_at = None
        self._report(f"{watched.name} runs again (process {watched.child.pid})")
        self._changed()


def _gave_up(name: str, log: Path) -> StackError:
    """The error of a role that ended: its own message if it printed one, else the end of its log."""
    said = process.tail(log)
    for line in reversed(said.splitlines()):
        if line.startswith(("alignez: ", "alignez worker: ", "error: ")):
            return StackError(f"{name} did not start: {line.split(': ', 1)[1]}")
    return ServerDidNotStart(name, "it ended", str(log), said)
