"""The whole product on one machine: its parts, the order of their start, and `run.json`, which clients read."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cli.client import is_ready
from cli.config import RunInfo, default_model_cache
from cli.errors import StackError
from cli.local_stack import process
from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
from cli.local_stack.process import DirectoryLock
from cli.local_stack.server import EmbeddedServer
from cli.local_stack.supervisor import RoleProcess, Supervisor

_READY_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 0.1
#: A certificate names a service, not 127.0.0.1, so that the stack could not check its own processes.
_TLS_SETTINGS = tuple(
    f"ALIGNEZ_{kind}_TLS_{file}" for kind in ("API", "API_METRICS", "WORKER_METRICS") for file in ("CERT", "KEY")
)


class LocalStack:
    """Starts all parts, restarts those that end, and stops them. Use it from one thread: children die with it.

    Args:
        data_dir: directory of all files of the stack.
        report: called with one line of text per event.
        host, port: address of the REST API; port 0: a free one.
        model: model of all processes: catalogue name, GGUF file, directory or hub id; None: `ALIGNEZ_MODEL`, else the
            shipped model.
        workers: number of fit processes.
    """

    def __init__(
        self, data_dir: Path, report: Callable[[str], None], host: str, port: int, model: str | None, workers: int
    ) -> None:
        self._data_dir = data_dir
        self._report = report
        self._host = host
        self._port = port
        self._model = model
        self._workers = workers
        self._lock = DirectoryLock(self._data_dir, "alignez")
        self._supervisor = Supervisor(report, self._write_run_info)
        self._run: RunInfo | None = None
        self._stopping = False
        #: True if this start made the operator key, which nobody has seen yet.
        self.key_is_new = False
        #: Role → Prometheus endpoint.
        self._metrics: dict[str, str] = {}

    @property
    def key_file(self) -> Path:
        """File with the operator key, mode 0600."""
        return self._data_dir / "operator.key"

    def start(self) -> RunInfo:
        """Starts all parts, waits until each is ready, and writes `run.json`. Returns its content.

        Raises: StackError: the parts that had started are stopped.
        """
        began = time.monotonic()
        if names := sorted(set(_TLS_SETTINGS) & os.environ.keys()):
            raise StackError(f"this stack speaks plain HTTP: unset {names[0]}, or start the processes one by one")
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
            postgres = PostgresServer(self._data_dir / "postgres", log=self._log("postgres"))
            database_url = self._start_server("postgres", "ALIGNEZ_DATABASE_URL", postgres)
            redis = RedisServer(self._data_dir / "broker", log=self._log("broker"))
            broker_url = self._start_server("broker", "ALIGNEZ_BROKER_URL", redis)
            environment = self._environment(database_url, broker_url, port)
            self._prepare_database(database_url, None if "ALIGNEZ_DATABASE_URL" in os.environ else postgres.owner_url)
            self._start_roles(environment, port)
            self._run = RunInfo(
                url=self._url(port),
                key_file=str(self.key_file),
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
        """Restarts parts that end, until `request_stop`."""
        while not self._stopping:
            self._supervisor.check()
            time.sleep(_LOOK_EVERY_S)

    def request_stop(self) -> None:
        """Makes `watch` return; safe in a signal handler."""
        self._stopping = True

    def stop(self) -> None:
        """Stops everything, clients before servers, and removes `run.json`."""
        if self._run is not None:
            (self._data_dir / "run.json").unlink(missing_ok=True)
            self._run = None
        self._supervisor.stop()
        self._lock.release()

    def _log(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    def _url(self, port: int) -> str:
        """URL of the API for clients on this machine."""
        host = "127.0.0.1" if self._host in ("0.0.0.0", "::", "") else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Reports the duration of one part of the start."""
        began = time.monotonic()
        yield
        self._report(f"{name}: ready ({time.monotonic() - began:.1f} s)")

    def _api_port(self) -> int:
        host, port = self._host, self._port
        try:
            if port == 0:
                return process.free_port(host)
            taken = not process.is_free(port, host)
        except OSError as error:
            raise StackError(f"cannot listen on host {host!r} ({error}): choose another --host") from None
        if taken:
            raise StackError(f"port {port} of {host} is taken or not allowed: pass --port 0 for a free one")
        return port

    def _start_server(self, name: str, setting: str, server: EmbeddedServer) -> str:
        """URL of the server in the environment variable `setting` if it is set, else of the embedded one."""
        if own := os.environ.get(setting):
            self._report(f"{name}: your own server ({setting})")
            return own
        with self._step(name):
            self._supervisor.start(name, server, server.log)
        return server.url

    def _environment(self, database_url: str, broker_url: str, port: int) -> dict[str, str]:
        """The environment of every child: the user's own one with the stack's settings."""
        environment = dict(os.environ)
        defaults = {
            # Two processes with a model share the cores: more threads than cores slow both down.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "ALIGNEZ_API_DRAIN_S": "5",
            # Without a network, a lost worker or message can be detected much sooner.
            "ALIGNEZ_WORKER_LEASE_S": "8",
            "ALIGNEZ_WORKER_RELAY_RESEND_S": "5",
            "PYTHONUNBUFFERED": "1",
        }
        for name, value in defaults.items():
            environment.setdefault(name, value)
        environment |= {
            "ALIGNEZ_DATABASE_URL": database_url,
            "ALIGNEZ_BROKER_URL": broker_url,
            "ALIGNEZ_API_HOST": self._host,
            "ALIGNEZ_API_PORT": str(port),
            "ALIGNEZ_MODEL_CACHE": str(default_model_cache(self._data_dir)),
        }
        if self._model is not None:
            environment["ALIGNEZ_MODEL"] = self._model
        return environment

    def _prepare_database(self, url: str, owner_url: str | None) -> None:
        """Migrates the stack's own database; at the first start, makes the tenant `default` with its operator key.

        Args:
            owner_url: None for the user's own database, which its owner migrates (`alignez migrate`).
        """
        with self._step("migrations"):
            from cli.local_stack.first_key import ensure_operator_key
            from profiles import migrate

            if owner_url is not None:
                migrate.upgrade(owner_url)
            self.key_is_new = ensure_operator_key(url, self.key_file)

    def _start_roles(self, environment: Mapping[str, str], port: int) -> None:
        """Starts relay, workers and API together, because several of them load a model, and waits for all."""
        workers = ["worker", *(f"worker-{number}" for number in range(2, self._workers + 1))]
        names = ["relay", *workers, "api"]
        for name in names:
            flag = self._data_dir / f"{name}.ready"
            role = name.split("-")[0]
            arguments = [] if role == "api" else ["--ready-file", str(flag)]
            child = RoleProcess(
                name=name,
                argv=[sys.executable, "-m", "cli.main", role, *arguments],
                env={**environment, **self._metrics_port(name)},
                log=self._log(name),
                ready=(lambda: is_ready(self._url(port))) if role == "api" else flag.exists,
                before_start=lambda flag=flag: flag.unlink(missing_ok=True),  # type: ignore[misc]
            )
            self._supervisor.start(name, child, child.log)
        for name in names:
            with self._step(name):
                self._supervisor.wait_ready(name, _READY_TIMEOUT_S)

    def _metrics_port(self, name: str) -> dict[str, str]:
        """The environment variable with a process's metrics port, which stays the same at every start."""
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
    """Starts a stack, calls `ready`, and stops the stack at SIGINT, SIGTERM or SIGHUP."""

    def on_signal(number: int, frame: object) -> None:
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # a further signal must not interrupt the shutdown
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
