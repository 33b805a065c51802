"""The one Celery task: a hint that a job may be there to be done."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from celery import Celery

from profiles.delivery.celery_queue import FIT_TASK


def register_tasks(app: Celery, fit: Callable[[UUID], None]) -> None:
    """Adds `worker.fit_profile` to an app.

    Args:
        fit: what a child process does with a job id.
    """

    @app.task(name=FIT_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def fit_profile(job_id: str) -> None:
        """Runs a fit or an evaluation, as the job's row says. Idempotent: a finished job is left alone."""
        fit(UUID(job_id))
