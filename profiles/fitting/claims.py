"""Claims, leases and ends of jobs, for workers. The claim's attempt number fences every write.

A worker that continues after it lost its lease finds another attempt number on the job and gets `LeaseLost`. So it can
neither overwrite nor repeat its successor's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import func

from profiles.errors import JobCancelled, LeaseLost, ModelConflict, NotFound
from profiles.models import BaseModelRow, Job, JobKind, JobStatus
from profiles.text import storable
from profiles.uow import UnitOfWork
from telemetry.tracing import NO_ORIGIN, Origin

#: Number of errors and lost workers after which a job fails.
MAX_FAILURES = 4
_BACKOFF_S = 3.0


@dataclass(frozen=True)
class Claim:
    """The right to work on a job until the lease ends.

    Args:
        spec: spec of the version. request: settings of an evaluation.
    """

    job_id: UUID
    attempt: int
    tenant_id: UUID
    profile_id: UUID
    version_id: UUID
    spec: Mapping[str, Any]
    origin: Origin = NO_ORIGIN
    kind: JobKind = JobKind.FIT
    request: Mapping[str, Any] = field(default_factory=dict)


def claim(uow: UnitOfWork, job_id: UUID, worker: str, lease_s: float) -> Claim | None:
    """Claims a queued job by one atomic statement; None if it has ended, runs, or is not due.

    Args:
        worker: a name for people. lease_s: duration of the claim without a heartbeat.
    """
    job = uow.repository.jobs.claim(job_id, worker, lease_s)
    if job is None:
        return None
    version = uow.repository.catalog.version_by_id(job.version_id)
    if version is None:
        raise NotFound("version", job.version_id)
    uow.repository.jobs.add_event(job, "running")
    origin = Origin(job.request_id, job.traceparent)
    return Claim(
        job.id, job.attempt, job.tenant_id, job.profile_id, job.version_id, version.spec, origin, job.kind,
        job.request or {},
    )  # fmt: skip


def claim_next(uow: UnitOfWork, worker: str, lease_s: float) -> Claim | None:
    """Claims the job that is next in turn; None if none is due. Args: as `claim`."""
    job_id = uow.repository.jobs.next_in_turn()
    return None if job_id is None else claim(uow, job_id, worker, lease_s)


def heartbeat(uow: UnitOfWork, claim: Claim, lease_s: float) -> bool:
    """Extends the lease; returns True if a cancel was requested. Raises: LeaseLost."""
    cancelled = uow.repository.jobs.extend_lease(claim.job_id, claim.attempt, lease_s)
    if cancelled is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    return cancelled


def bind_model(uow: UnitOfWork, claim: Claim, model: BaseModelRow) -> None:
    """Binds version and profile to the worker's model if they have none.

    Raises: ModelConflict: they are bound to another model. LeaseLost. JobCancelled: the profile was deleted.
    """
    catalog = uow.repository.catalog
    profile = catalog.profile(claim.tenant_id, claim.profile_id, lock=True)
    with fenced(uow, claim):
        version = catalog.version_by_id(claim.version_id)
        if profile is None or version is None:
            raise JobCancelled(claim.job_id)
        wanted = version.base_model_id or profile.base_model_id
        if wanted is not None and wanted != model.id:
            expected = catalog.base_model(wanted)
            raise ModelConflict(_label(expected) if expected else str(wanted), _label(model))
        version.base_model_id = model.id
        profile.base_model_id = model.id
        uow.session.flush()


def record_progress(uow: UnitOfWork, claim: Claim, stage: str, done: int, total: int) -> None:
    """Stores a stage's progress. Raises: LeaseLost, JobCancelled."""
    with fenced(uow, claim) as job:
        stop_if_cancelled(job)
        uow.repository.jobs.set_progress(job, stage, done, total)


def count_tokens(uow: UnitOfWork, claim: Claim, tokens: int) -> None:
    """Adds an attempt's generated tokens to the tenant's usage, even if the attempt has lost its lease."""
    if tokens:
        spent = {"tenant_id": claim.tenant_id, "profile_id": claim.profile_id, "fit_tokens": tokens}
        uow.repository.accounts.add_usage([{**spent, "day": func.current_date()}])


def fail(
    uow: UnitOfWork, claim: Claim, code: str, message: str, *, retryable: bool = False, max_failures: int = MAX_FAILURES
) -> bool:
    """Ends the job as failed, or queues it again with a growing pause; returns True if it was queued.

    Args:
        code: stable name of the error. message: for the job's owner, without stack trace.
    Raises: LeaseLost.
    """
    with fenced(uow, claim) as job:
        return _fail(uow, job, code, message, retryable and job.cancel_requested_at is None, max_failures)


def acknowledge_cancel(uow: UnitOfWork, claim: Claim) -> None:
    """Ends the job as cancelled. Raises: LeaseLost."""
    with fenced(uow, claim) as job:
        _cancel(uow, job)


def hand_back(uow: UnitOfWork, claim: Claim) -> None:
    """Queues the job again for a worker that shuts down, without counting a failure. Raises: LeaseLost."""
    with fenced(uow, claim) as job:
        if job.cancel_requested_at is not None:
            _cancel(uow, job)
        else:
            uow.repository.jobs.requeue(job)


def sweep(uow: UnitOfWork, resend_s: float, *, max_failures: int = MAX_FAILURES) -> tuple[int, int]:
    """Recovers jobs of lost workers and lost messages; returns (ended leases, messages to send again).

    Args:
        resend_s: waiting time of a queued job before its first message is sent again.
    """
    jobs = uow.repository.jobs
    expired = jobs.expired(100)
    for job in expired:
        if job.cancel_requested_at is not None:
            _cancel(uow, job)
            continue
        message = f"worker {job.worker} stopped answering"
        _fail(uow, job, "worker_lost", message, True, max_failures, pause_s=0.0)
    return len(expired), jobs.resend(resend_s)


def _cancel(uow: UnitOfWork, job: Job) -> None:
    uow.repository.jobs.finish(job, JobStatus.CANCELLED, "cancelled", "cancelled while running")


def _fail(
    uow: UnitOfWork, job: Job, code: str, message: str, retryable: bool, max_failures: int, pause_s: float = _BACKOFF_S
) -> bool:
    job.failures += 1
    code, message = code[:64], storable(message)[:2000]
    if not retryable or job.failures >= max_failures:
        uow.repository.jobs.finish(job, JobStatus.FAILED, code, message)
        return False
    job.error_code, job.error_message = code, message
    uow.session.flush()
    uow.repository.jobs.add_event(job, "retry")
    uow.repository.jobs.requeue(job, pause_s * 2 ** (job.failures - 1))
    return True


@contextmanager
def fenced(uow: UnitOfWork, claim: Claim) -> Iterator[Job]:
    """The job's locked row. Raises: LeaseLost: this attempt does not own the job."""
    job = uow.repository.jobs.fenced(claim.job_id, claim.attempt)
    if job is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    yield job


def stop_if_cancelled(job: Job) -> None:
    """Raises: JobCancelled: a cancel was requested."""
    if job.cancel_requested_at is not None:
        raise JobCancelled(job.id)


def _label(model: BaseModelRow) -> str:
    return f"{model.name} ({model.fingerprint[:12]})"
