"""Jobs, their events and the outbox. Every write of a worker is fenced by its attempt number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from profiles.models import Job, JobEvent, JobKind, JobStatus, JobText, OutboxMessage, ProfileVersion, VersionState
from profiles.paging import Page, fetch_page

#: Postgres channel that wakes the relay.
OUTBOX_CHANNEL = "alignez_outbox"

#: Shortest time between two progress events of a stage.
_EVENT_SPACING = timedelta(milliseconds=300)

_OPEN = (JobStatus.QUEUED, JobStatus.RUNNING)

#: `load`: number of running jobs of the tenant if this one started. `served_at`: start of the tenant's preceding job;
#: a job that was cancelled in the queue has no start. 100 candidates suffice for 100 simultaneous claims, because each
#: claim locks another job.
_NEXT_IN_TURN = text(
    """
    WITH running AS (
        SELECT tenant_id, count(*) AS jobs FROM jobs WHERE status = 'running' GROUP BY tenant_id
    ), queued AS (
        SELECT id, tenant_id, row_number() OVER (PARTITION BY tenant_id ORDER BY id) AS place
        FROM jobs WHERE status = 'queued' AND (run_after IS NULL OR run_after <= clock_timestamp())
    ), candidates AS (
        SELECT queued.id, coalesce(running.jobs, 0) + queued.place AS load,
               CASE WHEN queued.place = 1 THEN (
                   SELECT coalesce(before.started_at, before.finished_at) FROM jobs AS before
                   WHERE before.tenant_id = queued.tenant_id AND before.id < queued.id
                   ORDER BY before.id DESC LIMIT 1
               ) END AS served_at
        FROM queued LEFT JOIN running ON running.tenant_id = queued.tenant_id
        ORDER BY load, served_at NULLS FIRST, queued.id LIMIT 100
    )
    SELECT jobs.id FROM candidates JOIN jobs ON jobs.id = candidates.id
    WHERE jobs.status = 'queued'
    ORDER BY candidates.load, candidates.served_at NULLS FIRST, jobs.id
    LIMIT 1 FOR UPDATE OF jobs SKIP LOCKED
    """
)


@dataclass(frozen=True)
class Backlog:
    """Waiting work: messages in the outbox, jobs, and the age of the oldest of each in seconds (0: there is none)."""

    messages: int
    oldest_message_s: float
    queued: int
    oldest_due_s: float
    running: int


@dataclass(frozen=True)
class WaitingMessage:
    """A message in the outbox, its waiting time, and the origin of its job (see `tracing.Origin`)."""

    id: int
    job_id: UUID
    waited_s: float
    request_id: str | None
    traceparent: str | None


class Jobs:
    """Queries on jobs. Times are the database's own (clock_timestamp), so workers' clocks do not matter."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, job: Job) -> None:
        """Stores a queued job, its first event and its outbox message."""
        self._session.add(job)
        self._session.flush()
        self.add_event(job, "queued")
        self.enqueue(job)

    def enqueue(self, job: Job) -> None:
        """Adds a message to the outbox unless one is waiting; the relay sends it after this transaction commits."""
        statement = insert(OutboxMessage).values(tenant_id=job.tenant_id, job_id=job.id)
        self._session.execute(statement.on_conflict_do_nothing(index_elements=["job_id"]))
        self._session.execute(select(func.pg_notify(OUTBOX_CHANNEL, "")))

    def open_count(self, tenant_id: UUID) -> int:
        """Number of the tenant's queued and running jobs."""
        statement = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.finished_at.is_(None))
        return self._session.scalars(statement).one()

    def job(self, tenant_id: UUID, job_id: UUID, *, lock: bool = False) -> Job | None:
        statement = select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id)
        if lock:
            statement = statement.with_for_update().execution_options(populate_existing=True)
        return self._session.scalars(statement).one_or_none()

    def jobs(self, tenant_id: UUID, status: JobStatus | None, cursor: str | None, limit: int) -> Page[Job]:
        statement = select(Job).where(Job.tenant_id == tenant_id)
        if status is not None:
            statement = statement.where(Job.status == status)
        return fetch_page(self._session, statement, Job.id, cursor, limit)

    def of_version(self, version_id: UUID) -> Job | None:
        """The fit job of a version."""
        statement = select(Job).where(Job.version_id == version_id, Job.kind == JobKind.FIT)
        return self._session.scalars(statement).one_or_none()

    def open_of_profile(self, profile_id: UUID) -> list[Job]:
        """The profile's queued and running jobs, locked."""
        statement = select(Job).where(Job.profile_id == profile_id, Job.status.in_(_OPEN)).order_by(Job.id)
        return list(self._session.scalars(statement.with_for_update().execution_options(populate_existing=True)))

    # For workers

    def claim(self, job_id: UUID, worker: str, lease_s: float) -> Job | None:
        """The job, now running with a new attempt number; None if it is not queued or not due."""
        now = func.clock_timestamp()
        # COALESCE prevents the use of the index of open jobs. With statistics older than a long queue, the planner
        # estimates that index as nearly empty, and every claim would read every queued job.
        status = func.coalesce(Job.status, literal_column("''"))
        statement = (
            update(Job)
            .where(Job.id == job_id, status == JobStatus.QUEUED, (Job.run_after.is_(None)) | (Job.run_after <= now))
            .values(
                status=JobStatus.RUNNING,
                attempt=Job.attempt + 1,
                worker=worker[:200],
                lease_until=now + timedelta(seconds=lease_s),
                started_at=func.coalesce(Job.started_at, now),
                run_after=None,
            )
            .returning(Job)
        )
        return self._session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()

    def next_in_turn(self) -> UUID | None:
        """The queued job that a worker has to take next, locked until the transaction ends; None if none is due.

        Tenants take turns: the one with the fewest running jobs is first, and among equals the one that was served
        least recently. Jobs of a tenant run in the order of their creation. Reads the index of open jobs, and one
        further job of each tenant in it.
        """
        return self._session.scalars(_NEXT_IN_TURN).one_or_none()

    def fenced(self, job_id: UUID, attempt: int) -> Job | None:
        """The job, locked until the transaction ends, if this attempt owns it; else None."""
        statement = (
            select(Job)
            .where(Job.id == job_id, Job.attempt == attempt, Job.status == JobStatus.RUNNING)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
        return self._session.scalars(statement).one_or_none()

    def extend_lease(self, job_id: UUID, attempt: int, lease_s: float) -> bool | None:
        """True if a cancel was requested; None if this attempt does not own the job."""
        statement = (
            update(Job)
            .where(Job.id == job_id, Job.attempt == attempt, Job.status == JobStatus.RUNNING)
            .values(lease_until=func.clock_timestamp() + timedelta(seconds=lease_s))
            .returning(Job.cancel_requested_at.is_not(None))
        )
        return self._session.scalars(statement, execution_options={"synchronize_session": False}).one_or_none()

    def set_progress(self, job: Job, stage: str, done: int, total: int) -> None:
        """Stores a stage's progress. Adds an event at the stage's begin and end, and at intervals between."""
        news = job.stage != stage or done >= total
        job.stage = stage
        job.progress = {**job.progress, stage: {"done": done, "total": total}}
        self._session.flush()
        now = func.clock_timestamp()
        due: ColumnElement[bool] = Job.event_at.is_(None) | (Job.event_at <= now - _EVENT_SPACING)
        statement = update(Job).where(Job.id == job.id).values(event_at=now).returning(Job.id)
        if not news:
            statement = statement.where(due)
        if self._session.scalars(statement, execution_options={"synchronize_session": False}).one_or_none():
            self.add_event(job, "progress")

    def requeue(self, job: Job, delay_s: float = 0.0) -> None:
        """Queues the job again, not to be claimed within `delay_s`; without a delay, sends a message at once."""
        job.status = JobStatus.QUEUED
        job.lease_until = None
        job.worker = None
        job.sends = 0
        job.sent_at = None
        job.run_after = func.clock_timestamp() + timedelta(seconds=delay_s) if delay_s else None
        self._session.flush()
        self.add_event(job, "queued")
        if not delay_s:
            self.enqueue(job)

    def finish(self, job: Job, status: JobStatus, code: str | None = None, message: str | None = None) -> None:
        """Ends the job and removes its intermediate texts. A fit that did not succeed fails its version."""
        job.status = status
        job.lease_until = None
        job.run_after = None
        job.finished_at = func.clock_timestamp()
        job.error_code = code
        job.error_message = message
        self._session.flush()
        if status is not JobStatus.SUCCEEDED and job.kind is JobKind.FIT:
            statement = (
                update(ProfileVersion)
                .where(ProfileVersion.id == job.version_id, ProfileVersion.state == VersionState.PENDING)
                .values(state=VersionState.FAILED)
            )
            self._session.execute(statement, execution_options={"synchronize_session": "fetch"})
        self._session.execute(delete(OutboxMessage).where(OutboxMessage.job_id == job.id))
        self._session.execute(
            delete(JobText).where(JobText.job_id == job.id), execution_options={"synchronize_session": False}
        )
        self.add_event(job, status.value)

    # Intermediate texts

    def add_texts(self, job: Job, kind: str, texts: Mapping[int, str]) -> None:
        """Stores texts by position until the job ends; does not replace existing ones."""
        if texts:
            rows = [
                {"job_id": job.id, "kind": kind, "position": position, "tenant_id": job.tenant_id, "text": text_}
                for position, text_ in texts.items()
            ]
            self._session.execute(
                insert(JobText).values(rows).on_conflict_do_nothing(index_elements=["job_id", "kind", "position"])
            )

    def texts(self, job_id: UUID) -> dict[str, dict[int, str]]:
        """Kind → position → text."""
        statement = (
            select(JobText.kind, JobText.position, JobText.text)
            .where(JobText.job_id == job_id)
            .order_by(JobText.kind, JobText.position)
        )
        found: dict[str, dict[int, str]] = {}
        for kind, position, text_ in self._session.execute(statement):
            found.setdefault(kind, {})[position] = text_
        return found

    # Events

    def add_event(self, job: Job, kind: str) -> None:
        """Appends an event with the job's present state."""
        payload: dict[str, Any] = {
            "status": job.status.value,
            "stage": job.stage,
            "progress": job.progress,
            "attempt": job.attempt,
        }
        if job.error_code is not None:
            payload["error"] = {"code": job.error_code, "message": job.error_message}
        self._session.add(JobEvent(tenant_id=job.tenant_id, job_id=job.id, kind=kind, payload=payload))
        self._session.flush()

    def events(self, job_id: UUID, after_id: int, limit: int) -> list[JobEvent]:
        """The job's events after `after_id`, oldest first."""
        statement = (
            select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after_id).order_by(JobEvent.id).limit(limit)
        )
        return list(self._session.scalars(statement))

    # For the relay

    def take_messages(self, limit: int) -> list[WaitingMessage]:
        """Messages to send, oldest first, locked; skips those that another relay has locked."""
        waited = func.extract("epoch", func.clock_timestamp() - OutboxMessage.created_at)
        statement = (
            select(OutboxMessage.id, OutboxMessage.job_id, waited, Job.request_id, Job.traceparent)
            .join(Job, Job.id == OutboxMessage.job_id)
            .order_by(OutboxMessage.id)
            .limit(limit)
            .with_for_update(of=OutboxMessage, skip_locked=True)
        )
        return [
            WaitingMessage(id_, job, float(seconds), request, parent)
            for id_, job, seconds, request, parent in self._session.execute(statement)
        ]

    def sent(self, messages: Mapping[int, UUID]) -> None:
        """Removes confirmed messages (id → job) and stores the time on their jobs."""
        self._session.execute(
            delete(OutboxMessage).where(OutboxMessage.id.in_(list(messages))),
            execution_options={"synchronize_session": False},
        )
        self._session.execute(
            update(Job)
            .where(Job.id.in_(list(messages.values())), Job.status == JobStatus.QUEUED)
            .values(sent_at=func.clock_timestamp(), sends=Job.sends + 1),
            execution_options={"synchronize_session": False},
        )

    def backlog(self) -> Backlog:
        """The present backlog. Reads the outbox and the index of open jobs only."""
        statement = text(
            """
            SELECT m.count, m.oldest, j.queued, j.oldest, j.running
            FROM (SELECT count(*) AS count,
                         coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0) AS oldest
                  FROM outbox) AS m,
                 (SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
                         count(*) FILTER (WHERE status = 'running') AS running,
                         coalesce(extract(epoch FROM clock_timestamp() - min(greatest(created_at, run_after))
                             FILTER (WHERE status = 'queued'
                                       AND (run_after IS NULL OR run_after <= clock_timestamp()))), 0) AS oldest
                  FROM jobs WHERE status IN ('queued', 'running')) AS j
            """
        )
        messages, oldest_message, queued, oldest_due, running = self._session.execute(statement).one()
        return Backlog(messages, float(oldest_message), queued, float(oldest_due), running)

    def expired(self, limit: int) -> list[Job]:
        """Running jobs with an expired lease, locked."""
        statement = (
            select(Job)
            .where(Job.status == JobStatus.RUNNING, Job.lease_until < func.clock_timestamp())
            .order_by(Job.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .execution_options(populate_existing=True)
        )
        return list(self._session.scalars(statement))

    def resend(self, after_s: float) -> int:
        """Adds outbox messages for queued jobs that no worker claimed in time; returns their number.

        The pause doubles with every message (up to 64 times `after_s`), so that a long queue causes few messages.
        """
        statement = text(
            """
            INSERT INTO outbox (tenant_id, job_id)
            SELECT tenant_id, id FROM jobs
            WHERE status = 'queued' AND (run_after IS NULL OR run_after <= clock_timestamp())
              AND (sent_at IS NULL
                   OR sent_at < clock_timestamp() - make_interval(secs => :after * power(2, least(sends, 7) - 1)))
            ON CONFLICT (job_id) DO NOTHING
            RETURNING id
            """
        )
        return len(self._session.scalars(statement, {"after": after_s}).all())
