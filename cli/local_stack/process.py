"""Child processes that cannot outlive their parent, and ports that stay the same."""

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

from cli.files import write_atomically
from cli.local_stack import exec_guard, parent_watch

_LOG_LIMIT_BYTES = 10 * 2**20


@dataclass(frozen=True)
class RunAs:
    """The user a child runs as, and the one capability it keeps (-1: none)."""

    uid: int
    gid: int
    capability: int = -1


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    death_signal: signal.Signals,
    env: Mapping[str, str] | None = None,
    run_as: RunAs | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that gets `death_signal` when this process dies, however it dies.

    Linux sends the signal when the *thread* that called this ends, so call it from a thread that lives as long as the
    child should (the main thread).

    Args:
        argv: the program as an absolute path, and its arguments.
        log: file that stdout and stderr are appended to.
        death_signal: what the child gets when the parent is gone.
        env: the whole environment; the parent's when not given.
        run_as: user to become first (needs root).
        cwd: working directory.
    Returns: the process, in a session of its own, so that Ctrl-C reaches only the parent.
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
        watch = [sys.executable, "-I", "-S", parent_watch.__file__, str(os.getpid()), str(process.pid)]
        subprocess.Popen([*watch, str(int(death_signal))], stdin=subprocess.DEVNULL, start_new_session=True)
    return process


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Open a log for appending (mode 0600); one that grew over 10 MiB is set aside as `.1` first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def stop(process: subprocess.Popen[bytes], steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """End a child: send each signal in turn and wait its seconds; SIGKILL for the whole session at last."""
    for signal_number, wait_s in steps:
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    kill_session(process)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a child's session, its own children included, and reap the child."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log; empty when there is no log."""
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 8192))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


def remembered_port(path: Path) -> int:
    """A free port of 127.0.0.1: the one in `path` from last time when it is still free, else a new one, stored."""
    try:
        before = int(path.read_text())
    except (FileNotFoundError, ValueError):
        before = 0
    port = before if before and is_free(before) else free_port()
    if port != before:
        write_atomically(path, f"{port}\n")
    return port


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now."""
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
    """Wait until a process that is not our child no longer exists; false when it still does."""
    deadline = time.monotonic() + seconds
    while parent_watch.alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
