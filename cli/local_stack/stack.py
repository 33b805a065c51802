"""The whole product on one machine: its parts, their order, and the file that tells clients where it is."""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.config import RunInfo, default_model_cache
from cli.local_stack import process
from cli.local_stack.broker import RedisServer
from cli.local_stack.errors import StackError
from cli.local_stack.lock import DirectoryLock
from cli.local_stack.postgres import PostgresServer
from cli.local_stack.supervisor import RoleProcess, Supervisor

_READY_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class StackOptions:
    """Options of `alignez up`.

    Args:
        data_dir: directory of everything that the stack keeps.
        host, port: of the REST API; port 0 is a free one.
        model: for all processes: name of the catalogue, GGUF file, directory or hub id; None: `ALIGNEZ_MODEL`, else the
            shipped model.
        workers: fit processes.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    workers: int = 1


class LocalStack:
    """Starts all parts, keeps them running, stops them. Use it from one thread: the children die with that thread.

    Args:
        options: see `StackOptions`.
        report: gets one line of text per event.
    """

    def __init__(self, options: StackOptions, report: Callable[[str], None]) -> None:
        self._options = options
        self._data_dir = options.data_dir.expanduser().absolute()
        self._report = report
        self._lock = DirectoryLock(self._data_dir, "alignez")
        self._supervisor = Supervisor(report, self._write_run_info)
        self._run: RunInfo | None = None
        self._stopping = False
        #: True when this start made the admin key, so that it has not been shown yet.
        self.key_is_new = False
        #: Role → Prometheus endpoint.
        self._metrics: dict[str, str] = {}

    @property
    def key_file(self) -> Path:
        """File with the admin key, mode 0600."""
        return self._data_dir / "admin.key"

    def start(self) -> RunInfo:
        """Starts all parts, waits until each is ready, and writes `run.json`. Returns its content.

        Raises: StackError: with what to do; whatever had started is stopped.
        """
        began = time.monotonic()
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            if not os.access(self._data_dir, os.W_OK):
                raise StackError(f"{self._data_dir} is not writable: choose another --data-dir")
            self._lock.acquire()
        except OSError as error:
            raise StackError(f"cannot use {self._data_dir} ({error.strerror}): choose another --data-dir") from None
        try:
            (self._data_dir / "run.json").unlink(missing_ok=True)
            port = self._api_port()
            environment = self._environment(self._start_postgres(), self._start_broker(), port)
            self._prepare_database(environment["ALIGNEZ_DATABASE_URL"])
            self._start_roles(environment, port)
            host = "127.0.0.1" if self._options.host in ("0.0.0.0", "::", "") else self._options.host
            self._run = RunInfo(
                url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
                admin_key_file=str(self.key_file),
                metrics_url=self._metrics["api"],
                metrics_urls=dict(self._metrics),
                pid=os.getpid(),
            )
            self._write_run_info()
        except OSError as error:
            self.stop()
            raise StackError(f"cannot start in {self._data_dir}: {error}") from error
        except BaseException:
            self.stop()
            raise
        self._report(f"ready after {time.monotonic() - began:.1f} s")
        return self._run

    def watch(self) -> None:
        """Keep everything running until `request_stop`."""
        while not self._stopping:
            self._supervisor.check()
            time.sleep(_LOOK_EVERY_S)

    def request_stop(self) -> None:
        """Make `watch` return; safe in a signal handler."""
        self._stopping = True

    def stop(self) -> None:
        """Stop everything, clients before servers, and take `run.json` away."""
        if self._run is not None:
            (self._data_dir / "run.json").unlink(missing_ok=True)
            self._run = None
        self._supervisor.stop()
        self._lock.release()

    def _log(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    def _api_port(self) -> int:
        host, port = self._options.host, self._options.port
        try:
            if port == 0:
                return process.free_port(host)
            taken = not process.is_free(port, host)
        except OSError as error:
            raise StackError(f"cannot listen on host {host!r} ({error}): choose another --host") from None
        if taken:
            raise StackError(f"port {port} of {host} is taken or not allowed: pass --port 0 for a free one")
        return port

    def _start_postgres(self) -> str:
        """URL of the database: your own server's when `ALIGNEZ_DATABASE_URL` is set, else the embedded one's."""
        if own := os.environ.get("ALIGNEZ_DATABASE_URL"):
            self._report("postgres: your own server (ALIGNEZ_DATABASE_URL)")
            return own
        server = PostgresServer(self._data_dir / "postgres", log=self._log("postgres"))
        with _Step(self._report, "postgres"):
            self._supervisor.start("postgres", server, server.log)
        return server.url

    def _start_broker(self) -> str:
        if own := os.environ.get("ALIGNEZ_BROKER_URL"):
            self._report("broker: your own server (ALIGNEZ_BROKER_URL)")
            return own
        server = RedisServer(self._data_dir / "broker", log=self._log("broker"))
        with _Step(self._report, "broker"):
            self._supervisor.start("broker", server, server.log)
        return server.url

    def _environment(self, database_url: str, broker_url: str, port: int) -> dict[str, str]:
        """The settings of every child, on top of the user's own environment, which they may refine."""
        environment = dict(os.environ)
        defaults = {
            # Two processes with a model share the cores: with more threads than cores both are slow.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "ALIGNEZ_API_DRAIN_S": "5",
            # On one machine there is no network, so a lost worker or message can be noticed much sooner.
            "ALIGNEZ_WORKER_LEASE_S": "8",
            "ALIGNEZ_WORKER_RELAY_RESEND_S": "5",
            "PYTHONUNBUFFERED": "1",
        }
        for name, value in defaults.items():
            environment.setdefault(name, value)
        environment |= {
            "ALIGNEZ_DATABASE_URL": database_url,
            "ALIGNEZ_BROKER_URL": broker_url,
            "ALIGNEZ_API_HOST": self._options.host,
            "ALIGNEZ_API_PORT": str(port),
            "ALIGNEZ_MODEL_CACHE": str(default_model_cache(self._data_dir)),
        }
        if self._options.model is not None:
            environment["ALIGNEZ_MODEL"] = self._options.model
        return environment

    def _prepare_database(self, url: str) -> None:
        """Migrates, and on the first start makes the tenant `default` with its admin key."""
        with _Step(self._report, "migrations"):
            from cli.local_stack.first_key import ensure_admin_key
            from profiles import migrate

            migrate.upgrade(url)
            self.key_is_new = ensure_admin_key(url, self.key_file)

    def _start_roles(self, environment: Mapping[str, str], port: int) -> None:
        """Starts relay, workers and API at once and waits for all: two of them load a model."""
        names = ["relay", *(_worker_name(i) for i in range(self._options.workers)), "api"]
        for name in names:
            flag = self._data_dir / f"{name}.ready"
            role = name.split("-")[0]
            arguments = [] if role == "api" else ["--ready-file", str(flag)]
            child = RoleProcess(
                name=name,
                argv=[sys.executable, "-m", "cli.main", role, *arguments],
                env={**environment, **self._metrics_port(name)},
                log=self._log(name),
                ready=(lambda: _answers(self._options.host, port)) if role == "api" else flag.exists,
                before_start=lambda flag=flag: flag.unlink(missing_ok=True),  # type: ignore[misc]
            )
            self._supervisor.start(name, child, child.log)
        for name in names:
            with _Step(self._report, name):
                self._supervisor.wait_ready(name, _READY_TIMEOUT_S)

    def _metrics_port(self, name: str) -> dict[str, str]:
        """The setting for a process's own metrics port, which is the same at every start."""
        memory = self._data_dir / ("metrics.port" if name == "api" else f"{name}.metrics.port")
        port = process.remembered_port(memory)
        self._metrics[name] = f"http://127.0.0.1:{port}/metrics"
        return {f"ALIGNEZ_{'API' if name == 'api' else 'WORKER'}_METRICS_PORT": str(port)}

    def _write_run_info(self) -> None:
        if self._run is not None:
            pids: dict[str, int | None] = {"api": None, "worker": None, "relay": None, "postgres": None, "broker": None}
            self._run.pids.clear()
            self._run.pids.update(pids | self._supervisor.pids())
            self._run.write(self._data_dir)


def run_until_signal(stack: LocalStack, ready: Callable[[RunInfo], None]) -> None:
    """Starts a stack, calls `ready`, and stops the stack on SIGINT, SIGTERM or SIGHUP."""

    def on_signal(number: int, frame: object) -> None:
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # a further signal must not cut the shutdown short
        stack.request_stop()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        ready(stack.start())
        stack.watch()
    except KeyboardInterrupt:
        pass
    finally:
        stack.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Step:
    """Reports how long one part of the start took."""

    def __init__(self, report: Callable[[str], None], name: str) -> None:
        self._report = report
        self._name = name

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._report(f"{self._name}: ready ({time.monotonic() - self._began:.1f} s)")


def _worker_name(index: int) -> str:
    return "worker" if index == 0 else f"worker-{index + 1}"


def _answers(host: str, port: int) -> bool:
    """True when the API reports that all its parts are ready."""
    address = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}/ready"
    # The child is on this machine: a proxy of the environment is not for it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
