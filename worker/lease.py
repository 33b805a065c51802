"""The lease of a claimed job: extends it while the job runs, and reports its loss or a cancel to the job."""

from __future__ import annotations

import contextvars
import threading
from types import TracebackType

import structlog

from profiles.errors import DatabaseUnavailable, JobCancelled, LeaseLost, ProfilesError
from profiles.fitting import claims as jobs
from profiles.uow import SessionFactory, UnitOfWork

log = structlog.get_logger("worker")

#: Heartbeats per lease: two may be missed.
_BEATS = 3


class HeldLease:
    """A thread that extends the lease during a `with` block.

    It goes on while the database is unavailable, because no other worker can claim the job then.
    """

    def __init__(self, sessions: SessionFactory, claim: jobs.Claim, lease_s: float) -> None:
        self._sessions = sessions
        self._claim = claim
        self._lease_s = lease_s
        self._ended = threading.Event()
        self._news: ProfilesError | None = None
        # In the context of this thread, so that log lines of both have the same ids.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> HeldLease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raises: LeaseLost, JobCancelled: at the last heartbeat."""
        if self._news is not None:
            raise self._news

    def _run(self) -> None:
        while not self._ended.wait(self._lease_s / _BEATS):
            try:
                with UnitOfWork.open(self._sessions, self._claim.tenant_id) as uow:
                    cancelled = jobs.heartbeat(uow, self._claim, self._lease_s)
                if cancelled:
                    self._news = JobCancelled(self._claim.job_id)
            except LeaseLost as error:
                self._news = error
                return
            except DatabaseUnavailable as error:
                log.warning("no_heartbeat", job_id=str(self._claim.job_id), reason=str(error))
