"""The Celery worker: a parent with the connection to the broker, and a prefork child with the model.

`alignez worker` calls `run_worker`. For Celery's own command line, `celery -A worker.app worker` finds `celery_app`.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

from celery import Celery, signals

from profiles.delivery.celery_queue import FIT_TASK, broker_configuration
from profiles.settings import DatabaseSettings, read_settings
from telemetry.logs import configure_logs
from worker.child import Child
from worker.liveness import watch_consumer
from worker.settings import WorkerSettings

#: Loading a model of many gigabytes takes minutes; Celery's default is 4 s.
_LOAD_TIMEOUT_S = 1800.0


def make_celery(
    settings: WorkerSettings | None = None, database: DatabaseSettings | None = None, *, child: Child | None = None
) -> Celery:
    """The worker's Celery app with its task and process hooks. None: settings from the environment."""
    settings = settings or WorkerSettings()
    database = database or DatabaseSettings()
    child = child or Child(settings, database)
    app = Celery("alignez", set_as_current=False)
    app.conf.update(
        broker_configuration(database.broker_url, task_time_limit_s=settings.job_time_limit_s, queue=settings.queue),
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_proc_alive_timeout=_LOAD_TIMEOUT_S,
        # A fit goes on after a broken connection, because the database knows the job's owner.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_redirect_stdouts=False,
    )

    @app.task(name=FIT_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def fit_profile(job_id: str) -> None:
        """Runs the next fit or evaluation; the id is a hint. Idempotent: a finished job does not run again."""
        child.fit(UUID(job_id))

    _connect(child, settings)
    watch_consumer(app, child.pulse)
    return app


def run_worker(settings: WorkerSettings | None = None, database: DatabaseSettings | None = None) -> int:
    """Runs a worker until SIGTERM or Ctrl-C; returns the process's exit status.

    At the signal, a running fit stops after its batch, and its job is queued again.

    Raises: SystemExit: a setting is invalid.
    """
    settings = settings or read_settings(WorkerSettings)
    database = database or read_settings(DatabaseSettings)
    if settings.metrics_tls is not None:
        settings.metrics_tls.context()  # a wrong file ends the parent, before the child needs it
    configure_logs(settings.log_level, settings.log_format)
    child = Child(settings, database)
    app = make_celery(settings, database, child=child)
    arguments = [
        "--quiet",  # no banner, because each line of the log is a record
        "worker",
        "--pool=prefork",
        "--concurrency=1",
        f"--loglevel={settings.log_level}",
        "-Q",
        settings.queue,
    ]
    try:
        app.worker_main([*arguments, "--without-gossip", "--without-mingle", "-n", f"fits-{os.getpid()}@%h"])
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    else:
        status = 0
    return 1 if child.unusable else status


def _connect(child: Child, settings: WorkerSettings) -> None:
    """Connects the hooks of the worker's processes. `weak=False`, because nothing else refers to the functions."""

    def set_up_logs(**_: Any) -> None:
        """Replaces Celery's handlers and formats, in the parent and in each child."""
        configure_logs(settings.log_level, settings.log_format)

    signals.setup_logging.connect(set_up_logs, weak=False)
    signals.worker_process_init.connect(lambda **_: child.start(), weak=False)
    signals.worker_process_shutdown.connect(lambda **_: child.end(), weak=False)
    signals.worker_shutting_down.connect(lambda **_: child.stop(), weak=False)


def __getattr__(name: str) -> Celery:
    """`celery_app`, made at its first use, so that an import of this module reads no settings."""
    if name == "celery_app":
        return make_celery()
    raise AttributeError(name)
