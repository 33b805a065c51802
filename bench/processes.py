"""The product's processes for measurements and for the end-to-end tests, and an embedded PostgreSQL beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import psutil
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from cli.local_stack.postgres import PostgresServer
from cli.local_stack.process import free_port, kill_session
from profiles import migrate
from profiles.uow import SessionFactory, make_session_factory

ROOT = Path(__file__).parents[1]
_START_S = 120.0


@dataclass
class Running:
    """One process. `url` is an API's, and empty for other roles."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def end(self) -> int:
        """Sends SIGTERM, as Kubernetes does, and returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> int:
        """Kills it together with everything it started, and returns the exit status."""
        kill_session(self.process)
        return self.process.wait(10)

    def is_ready(self) -> bool:
        """True once it can do its work."""
        if not self.url:
            return self.log.with_suffix(".ready").exists()
        try:
            return httpx.get(f"{self.url}/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@dataclass
class Processes:
    """Starts roles on one database and broker; as a context manager, kills those still running at the end."""

    folder: Path  #: of their logs
    settings: dict[str, str] = field(default_factory=dict)  #: environment variables of all of them
    code: Path = ROOT  #: the checkout that they run
    started: list[Running] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self.started):
            one.kill()
        self.started.clear()

    def start(self, role: str, module: Sequence[str] = (), **settings: str) -> Running:
        """Returns a process of a role (api, worker, relay) once it is ready; see `start_all`."""
        return self.start_all(1, role, module, **settings)[0]

    def start_all(self, count: int, role: str, module: Sequence[str] = (), **settings: str) -> list[Running]:
        """Starts several processes in parallel; `module` with its arguments replaces `cli.main <role>`.

        Raises: RuntimeError: one ended, or was not ready in time; with the end of its log.
        """
        made = [self._launch(role, module, settings) for _ in range(count)]
        deadline = time.monotonic() + _START_S
        for one in made:
            while not one.is_ready():
                if one.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"not ready: {self.logs(one.log.stem)}")
                time.sleep(0.05)
        return made

    def logs(self, name: str = "") -> str:
        """The last lines of every log whose name begins with `name`."""
        logs = sorted(self.folder.glob(f"{name}*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def _launch(self, role: str, module: Sequence[str], settings: dict[str, str]) -> Running:
        port, log = free_port(), self.folder / f"{role}-{len(self.started)}-{os.urandom(3).hex()}.log"
        ready_file = [] if role == "api" else ["--ready-file", str(log.with_suffix(".ready"))]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ALIGNEZ_")}
        own = {"PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1", "ALIGNEZ_API_PORT": str(port)}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *(module or ["cli.main", role, *ready_file])],
                env={**inherited, "TOKENIZERS_PARALLELISM": "false", **own, **self.settings, **settings},
                cwd=self.code, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started.append(Running(process, log, f"http://127.0.0.1:{port}" if role == "api" else ""))
        return self.started[-1]


def cpu_s(pids: Iterable[int]) -> float:
    """Processor seconds used so far by processes and all their descendants."""
    total = 0.0
    for pid in pids:
        root = psutil.Process(pid)
        for member in (root, *root.children(recursive=True)):
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue  # it has just ended; its time counts in its parent's
            total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass(frozen=True)
class Database:
    """A migrated database, its server's process id, and an empty folder for other files.

    Args:
        sessions: of the processes' role. owner: sessions of the tables' owner, who sees all tenants' rows.
    """

    url: str
    sessions: SessionFactory
    owner: SessionFactory
    pid: int
    folder: Path


@contextmanager
def database() -> Iterator[Database]:
    """Starts a server and migrates it; removes everything afterwards."""
    with tempfile.TemporaryDirectory() as name, PostgresServer(Path(name) / "postgres") as postgres:
        migrate.upgrade(postgres.owner_url)
        sessions = make_session_factory(postgres.url)
        owner = sessionmaker(create_engine(postgres.owner_url), expire_on_commit=False)
        folder = Path(name) / "files"
        folder.mkdir()
        try:
            yield Database(postgres.url, sessions, owner, postgres.pid or 0, folder)
        finally:
            for factory in (sessions, owner):
                factory.kw["bind"].dispose()
