"""Child processes that cannot outlive their parent, directory locks, and ports that survive a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cli.config import write_atomically
from cli.errors import AlreadyRunning
from cli.local_stack import exec_guard

_LOG_LIMIT_BYTES = 10 * 2**20


@dataclass(frozen=True)
class RunAs:
    """The user that a child runs as, and the one capability that it keeps (-1: none)."""

    uid: int
    gid: int
    capability: int = -1


class DirectoryLock:
    """An exclusive lock on a directory, which the system releases when its owner dies.

    The file `lock` holds the owner's process id, for the error message.

    Args:
        directory: an existing directory.
        what: name of the server that uses the directory.
    """

    def __init__(self, directory: Path, what: str) -> None:
        self._path = directory / "lock"
        self._what = what
        self._lock = FileLock(self._path, mode=0o600, blocking=False, thread_local=False)

    def acquire(self) -> None:
        """Takes the lock; a no-op if this object holds it. Raises: AlreadyRunning: another process holds it."""
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire()
        except Timeout:
            owner = self._path.read_text(errors="replace").strip() or "unknown"
            raise AlreadyRunning(
                f"{self._what} in {self._path.parent} is already running (process {owner}): "
                "stop that one first, or choose another --data-dir"
            ) from None
        self._path.write_text(f"{os.getpid()}\n")

    def release(self) -> None:
        """Releases the lock; the file stays."""
        self._lock.release()


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    death_signal: signal.Signals,
    env: Mapping[str, str] | None = None,
    run_as: RunAs | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a program that gets `death_signal` when this process dies for any reason.

    Linux sends the signal when the *thread* that called this function ends, so call it from a thread that lives as
    long as the child should (the main thread).

    Args:
        argv: absolute path of the program, and its arguments.
        log: file that stdout and stderr are appended to.
        death_signal: signal that the child gets when the parent is gone.
        env: the whole environment; None: the parent's.
        run_as: user to change to first (needs root).
        cwd: working directory.
    Returns: the process, in its own session, so that Ctrl-C reaches only the parent.
    """
    user = run_as or RunAs(-1, -1)
    guard = [sys.executable, "-I", "-S", exec_guard.__file__]
    numbers = [os.getpid(), int(death_signal), user.uid, user.gid, user.capability]
    with open_log(log) as stream:
        process = subprocess.Popen(
            [*guard, *map(str, numbers), "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
        )
    if not sys.platform.startswith("linux"):
        watched = [str(os.getpid()), str(process.pid), str(int(death_signal))]
        subprocess.Popen([*guard, "watch", *watched], stdin=subprocess.DEVNULL, start_new_session=True)
    return process


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Opens a log for appending (mode 0600); renames one of more than 10 MiB to `.1` first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def stop(process: subprocess.Popen[bytes], steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """Ends a child: sends each signal in turn and waits its seconds, then sends SIGKILL to the whole session."""
    for signal_number, wait_s in steps:
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    kill_session(process)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kills all remaining processes of a child's session, its own children included, and reaps the child."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log; empty if there is no log."""
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 8192))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


def remembered_port(path: Path) -> int:
    """A free port of 127.0.0.1: the one stored in `path` if it is still free, else a new one, which is stored."""
    try:
        before = int(path.read_text())
    except (FileNotFoundError, ValueError):
        before = 0
    port = before if before and is_free(before) else free_port()
    if port != before:
        write_atomically(path, f"{port}\n")
    return port


def free_port(host: str = "127.0.0.1") -> int:
    """A port without a listener."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """True when a server that sets SO_REUSEADDR can bind the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def wait_gone(pid: int, seconds: float) -> bool:
    """Waits until a process that is not our child has ended; False if it still exists after `seconds`."""
    deadline = time.monotonic() + seconds
    while exec_guard.alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
