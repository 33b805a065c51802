"""The Celery worker: one parent that talks to the broker, one prefork child that holds the model.

`alignez worker` calls `run_worker`. For Celery's own command line, `celery -A worker.app worker` finds `celery_app`.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals

from profiles.delivery.celery_queue import broker_configuration
from profiles.settings import DatabaseSettings, read_settings
from telemetry.logs import configure_logs
from worker.child import Child
from worker.settings import WorkerSettings
from worker.tasks import register_tasks

#: A model of many gigabytes takes minutes to load; Celery's own patience with a new child is 4 s.
_LOAD_TIMEOUT_S = 1800.0


def make_celery(
    settings: WorkerSettings | None = None, database: DatabaseSettings | None = None, *, child: Child | None = None
) -> Celery:
    """The worker's Celery app, its task and its process hooks; None reads settings from the environment."""
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
        # A broken connection does not end a fit: the database knows whose job it is.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_redirect_stdouts=False,
    )
    register_tasks(app, child.fit)
    _connect(child, settings)
    return app


def run_worker(settings: WorkerSettings | None = None, database: DatabaseSettings | None = None) -> int:
    """Runs a worker until SIGTERM or Ctrl-C; returns the process's exit status.

    A running fit stops at the next batch and its job goes back to the queue at once.
    """
    settings = settings or read_settings(WorkerSettings)
    database = database or read_settings(DatabaseSettings)
    configure_logs(settings.log_level, settings.log_format)
    child = Child(settings, database)
    app = make_celery(settings, database, child=child)
    arguments = [
        "--quiet",  # no banner: each line of the log is a record
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
    """Hooks of this process; `weak=False` because nothing else holds the functions."""

    def set_up_logs(**_: Any) -> None:
        """Replaces Celery's handlers and formats, in the parent and in each child."""
        configure_logs(settings.log_level, settings.log_format)

    def start(**_: Any) -> None:
        child.start()

    def end(**_: Any) -> None:
        child.end()

    def stop(**_: Any) -> None:
        child.stop()

    signals.setup_logging.connect(set_up_logs, weak=False)
    signals.worker_process_init.connect(start, weak=False)
    signals.worker_process_shutdown.connect(end, weak=False)
    signals.worker_shutting_down.connect(stop, weak=False)


def __getattr__(name: str) -> Celery:
    """`celery_app`, made when it is asked for: importing this module reads no settings."""
    if name == "celery_app":
        return make_celery()
    raise AttributeError(name)
