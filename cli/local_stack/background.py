"""A stack as a child process during a `with` block, for the demo, benchmarks and tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from cli.config import RunInfo
from cli.errors import StackError
from cli.local_stack import process

_START_TIMEOUT_S = 600.0


class BackgroundStack:
    """`alignez up` as a child process, which ends with its own children when the block or this process ends.

    Args:
        data_dir: data directory of the stack.
        arguments: further arguments of `alignez up`.
        env: environment; None: this process's.
    """

    def __init__(self, data_dir: Path, arguments: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.log = self.data_dir / "logs" / "up.log"
        self._arguments = list(arguments)
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RunInfo:
        """Starts the stack and waits until it is ready.

        Raises: StackError: it did not start; the message is that of `alignez up`.
        """
        try:
            # The file of a killed stack must not be read as the new stack's.
            (self.data_dir / "run.json").unlink(missing_ok=True)
            argv = [sys.executable, "-m", "cli.main", "up", "--port", "0", "--data-dir", str(self.data_dir)]
            environment = {**(os.environ if self._env is None else self._env), "PYTHONUNBUFFERED": "1"}
            self._process = process.spawn(
                [*argv, *self._arguments], log=self.log, death_signal=signal.SIGTERM, env=environment
            )
            return self._wait()
        except OSError as error:
            raise StackError(f"cannot use {self.data_dir} ({error.strerror}): choose another --data-dir") from None
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the stack and waits for it."""
        if self._process is not None:
            process.stop(self._process, [(signal.SIGTERM, 60.0)])
            self._process = None

    def _wait(self) -> RunInfo:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if (run := RunInfo.read(self.data_dir)) is not None:
                return run
            if self._process.poll() is not None:
                said = process.tail(self.log, 40)
                _, found, reason = said.rpartition("error: ")
                raise StackError(reason.strip() if found else f"the stack did not start:\n{said}")
            time.sleep(0.1)
        raise StackError(f"the stack was not ready after {_START_TIMEOUT_S:.0f} s (log: {self.log})")
