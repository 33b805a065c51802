"""One owner at a time for a directory, released by the system when the owner dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cli.local_stack.errors import AlreadyRunning


class DirectoryLock:
    """An exclusive lock on `directory`; the lock file holds the owner's process id for the error message."""

    def __init__(self, directory: Path, what: str) -> None:
        self._path = directory / "lock"
        self._what = what
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises: AlreadyRunning: another process has it.
        """
        if self._descriptor is not None:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyRunning(
                f"{self._what} in {self._path.parent} is already running (process {owner}): "
                "stop that one first, or choose another --data-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; the file stays, because removing it would let two owners lock two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
