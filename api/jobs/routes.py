"""`/v1/jobs`: list, show, cancel, watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from api.deps import CallerDep, KeyedRoute, ServicesDep, UowDep
from api.http.errors import own_body, problem_of
from api.http.fields import Cursor, IdPath, PageLimit
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from api.http.sse import EventStream, event
from api.jobs.events import JobWatch
from api.jobs.schemas import JobRead, JobStatusName
from profiles.errors import NotFound
from profiles.models import Job
from profiles.service import cancel_job, get_job, list_jobs, version_numbers
from profiles.spec import parse_id
from profiles.uow import UnitOfWork

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=KeyedRoute)

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The job's events"}
}


@router.get("", summary="List jobs")
def index(
    caller: CallerDep,
    uow: UowDep,
    cursor: Cursor = None,
    limit: PageLimit = 50,
    status: Annotated[JobStatusName | None, Query(description="only jobs of this status")] = None,
) -> Listed[JobRead]:
    """Your jobs, newest first."""
    page = list_jobs(uow, caller, cursor, limit, status=status)
    return Listed(data=read_jobs(uow, page.rows), next=page.next)


@router.get("/{job}", summary="Show a job")
def show(job: IdPath, caller: CallerDep, uow: UowDep) -> JobRead:
    """Status, stage, progress per stage, and the error of a job that failed."""
    return read_jobs(uow, [get_job(uow, caller, job_id(job))])[0]


@router.post("/{job}/cancel", summary="Cancel a job", response_model=JobRead)
def cancel(
    job: IdPath, request: Request, caller: CallerDep, uow: UowDep, idempotency_key: IdempotencyHeader = None
) -> JSONResponse:
    """A queued job ends at once, a running one after its current batch. Idempotent; 409 once the job has ended."""

    def make() -> JobRead:
        return read_jobs(uow, [cancel_job(uow, caller, job_id(job))])[0]

    return once(uow, caller, idempotency_key, request, None, 200, make)


@router.get("/{job}/events", summary="Watch a job", response_class=Response, responses=_STREAM)
async def events(
    job: IdPath,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", max_length=40, description="resume after this event")
    ] = None,
) -> Response:
    """Server-sent events: one per change (`queued`, `progress`, `succeeded`, …) with the job's state, then `end`. A
    client that reconnects with `Last-Event-ID` misses none.
    """
    watch = JobWatch(services, caller, job_id(job), _after(last_event_id))
    await services.database_threads.run(watch.poll)  # an unknown job is answered with 404 instead of a stream
    request_id = request.state.request_id
    return EventStream(
        watch.blocks(),
        on_gone=watch.stop,
        on_error=lambda error: event(own_body(problem_of(error), request_id), name="error"),
        heartbeat_s=services.settings.heartbeat_s,
    )


def job_id(text: str) -> UUID:
    """Parses a job's id. Raises: NotFound: it is not a UUID."""
    found = parse_id(text)
    if found is None:
        raise NotFound("job", text)
    return found


def read_jobs(uow: UnitOfWork, jobs: Sequence[Job]) -> list[JobRead]:
    """Converts jobs, with one query for the numbers of their versions."""
    numbers = version_numbers(uow, jobs)
    return [JobRead.of(job, numbers.get(job.version_id)) for job in jobs]


def _after(last_event_id: str | None) -> int:
    """The event id to resume after; 0, the beginning, if the header holds no valid id."""
    text = (last_event_id or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
