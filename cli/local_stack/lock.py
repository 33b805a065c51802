"""One owner at a time for a directory, released by the system when the owner dies."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from cli.local_stack.errors import AlreadyRunning


class DirectoryLock:
    """An exclusive lock on `directory`; the lock file holds the owner's process id for the error message."""

    def __init__(self, directory: Path, what: str) -> None:
        self._path = directory / "lock"
        self._what = what
        self._lock = FileLock(self._path, mode=0o600, blocking=False, thread_local=False)

    def acquire(self) -> None:
        """Takes the lock; does nothing where this object holds it.

        Raises: AlreadyRunning: another process has it.
        """
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
        """Gives the lock back; the file stays."""
        self._lock.release()
