"""The prefork child: its engine, its database pool, and the signal that the parent shuts down."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from profiles.errors import DatabaseUnavailable
from profiles.service import register_base_model
from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, UnitOfWork, make_session_factory
from telemetry.metrics_server import MetricsServer
from telemetry.tracing import Tracing, start_tracing
from worker.liveness import Pulse
from worker.metrics import WorkerMetrics
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.runner import JobRunner

log = structlog.get_logger("worker")


class Child:
    """State of the child, made in the parent before the fork; `start`, `fit` and `end` run in the child.

    The parent does not import torch, so that no thread pool and no CUDA context is forked.
    """

    def __init__(self, settings: WorkerSettings, database: DatabaseSettings) -> None:
        self._settings = settings
        self._database = database
        context = multiprocessing.get_context("fork")  # the child inherits the events
        self._stopping = context.Event()
        self._unusable = context.Event()
        #: Signs of life of the parent, which the child reports beside its metrics.
        self.pulse = Pulse(settings.stuck_after_s)
        self._runner: JobRunner | None = None
        self._metrics = WorkerMetrics()
        self._tracing = Tracing()

    @property
    def unusable(self) -> bool:
        """True if the child could not load its model or has lost it."""
        return self._unusable.is_set()

    def stop(self) -> None:
        """Tells the child, from the parent, to hand its job back after the present batch."""
        self._stopping.set()

    def start(self) -> None:
        """Loads the model in the child. If that fails, the worker logs one line and ends."""
        # Ctrl-C reaches the whole process group, but the parent ends its children.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.nice(self._settings.niceness)
        try:
            if self._settings.metrics_port is not None:
                host, port = self._settings.metrics_host, self._settings.metrics_port
                tls, alive = self._settings.metrics_tls, self.pulse.alive
                exporter = MetricsServer.start(self._metrics.registry, host, port, tls=tls, alive=alive)
                log.info("metrics", port=exporter.port)
            self._tracing = start_tracing("worker")
            self._runner = self._make_runner()
            self._metrics.ready.set(1)
            log.info("model_loaded")
        except Exception as error:  # after any error: a worker without a model must not take jobs
            from alignez_core.errors import AlignezError

            if not isinstance(error, AlignezError):  # those have a message for users and need no stack trace
                log.exception("model_not_loaded")
            self._end_worker(str(error))

    def end(self) -> None:
        """Sends the remaining spans at the end of the child."""
        self._tracing.stop()

    def fit(self, job_id: UUID) -> None:
        """Runs a job in the child. Without a model the job stays queued, and the sweep sends it again."""
        if self._runner is not None:
            self._runner.run(job_id)

    def _end_worker(self, reason: str) -> None:
        """Ends the parent, which hands a running job back first, so that its supervisor restarts it."""
        print(f"alignez worker: {reason}", file=sys.stderr, flush=True)
        self._unusable.set()
        os.kill(os.getppid(), signal.SIGTERM)

    def _make_runner(self) -> JobRunner:
        from worker.engine import load_engine
        from worker.job import JobOptions
        from worker.judges import make_judge
        from worker.runner import JobRunner

        settings = self._settings
        loaded = load_engine(settings, on_lost=self._end_worker)
        sessions = make_session_factory(self._database)
        try:
            with UnitOfWork.open(sessions, PLATFORM) as uow:
                register_base_model(uow, loaded.facts)
        except DatabaseUnavailable as error:
            log.warning("model_not_registered", reason=str(error), then="with the first job")
        options = JobOptions(
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease_s=settings.lease_s,
            # Below Celery's limit, which kills the process without an error message.
            time_limit_s=settings.job_time_limit_s * 0.98,
            max_failures=settings.max_failures,
            database_patience_s=settings.database_patience_s,
            store_rows=settings.store_rows,
        )
        return JobRunner(
            sessions,
            loaded,
            options,
            self._stopping.is_set,
            self._metrics,
            self._tracing.tracer,
            lambda name: make_judge(name, settings),
        )
