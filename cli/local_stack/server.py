"""The common part of the embedded servers: one directory, one port, one process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Self

from cli.errors import ServerDidNotStart
from cli.local_stack import process


class EmbeddedServer:
    """A server whose files all lie in one directory.

    The server ends with this process, even when this process is killed. Port and password survive a restart (the port
    unless another program took it), so a URL stays valid.

    Args:
        data_dir: directory to make or reuse.
        log: log file; None: a file in `data_dir`.
    """

    name: str
    #: Signals that stop the server, and the seconds to wait after each.
    stop_signals: Sequence[tuple[Signals, float]]
    start_timeout_s: float
    #: Messages in the log of a failed start after which another start can succeed.
    passing: tuple[str, ...]

    def __init__(self, data_dir: Path | str, log: Path | None = None) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.log = log or self.data_dir / f"{self.name.lower()}.log"
        self._lock = process.DirectoryLock(self.data_dir, self.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._served = False

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """URL of the running server, password included."""
        raise NotImplementedError

    def start(self) -> str:
        """Starts the server if it does not run, and waits until it answers; returns the URL.

        Raises:
            MissingWheel: no binary for this platform.
            AlreadyRunning: another process runs a server on this directory.
            ServerDidNotStart: with the last lines of the log.
        """
        if self.pid is not None:
            return self.url
        binary = self._find()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._prepare(binary)
            if self._process is not None:
                process.kill_session(self._process)
            self._launch(binary)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Stops the server; a no-op when it does not run."""
        if self._process is not None:
            process.stop(self._process, self.stop_signals)
            self._process = None
        self._lock.release()

    def is_ready(self) -> bool:
        """True while it runs; `start` has waited for its first answer."""
        return self.pid is not None

    def ask_to_stop(self) -> None:
        """Does nothing: clients end first, so the server stops last and quickly."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _password(self) -> str:
        return (self.data_dir / "password").read_text().strip()

    def _find(self) -> Path:
        """Path of the server's binaries. Raises: MissingWheel."""
        raise NotImplementedError

    def _prepare(self, binary: Path) -> None:
        """Makes the files that the server needs, if they are missing."""
        raise NotImplementedError

    def _spawn(self, binary: Path) -> subprocess.Popen[bytes]:
        """Starts the process on `self._port`."""
        raise NotImplementedError

    def _answers(self) -> bool:
        """True when the server accepts the password and answers."""
        raise NotImplementedError

    def _may_pass(self, tail: str) -> bool:
        """True if another start can succeed after one that ended with these lines of the log."""
        return any(message in tail for message in self.passing)

    def _launch(self, binary: Path) -> None:
        """Starts the process and waits until it answers; tries again after a failure that passes by itself."""
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            if not self._served:  # later the port stays, because clients hold the URL
                self._port = process.remembered_port(self.data_dir / "port")
            self._process = self._spawn(binary)
            while self._process.poll() is None and time.monotonic() < deadline:
                if self._answers():
                    self._served = True
                    return
                time.sleep(0.02)
            tail = process.tail(self.log)
            if not self._may_pass(tail) or time.monotonic() > deadline:
                reason = f"exit code {self._process.poll()}" if self._process.poll() is not None else "no answer"
                raise ServerDidNotStart(self.name, reason, str(self.log), tail)
            time.sleep(0.2)
