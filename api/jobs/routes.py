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
from profiles.service import cancel_job, get_job, list_jobs
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
    """A queued job ends at once, a running one between two batches. Asking twice is the same; 409 once it has ended."""

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
    """Server-sent events: one per change, named by what happened (`queued`, `progress`, `succeeded`, …), each with the
    job's state, then `end`. A client that reconnects with `Last-Event-ID` misses nothing.
    """
    watch = JobWatch(services, caller, job_id(job), _after(last_event_id))
    await services.database_threads.run(watch.poll)  # an unknown job is a 404, not a stream
    request_id = request.state.request_id
    return EventStream(
        watch.blocks(),
        on_gone=watch.stop,
        on_error=lambda error: event(own_body(problem_of(error), request_id), name="error"),
    )


def job_id(text: str) -> UUID:
    """Raises: NotFound: what is no UUID names no job."""
    found = parse_id(text)
    if found is None:
        raise NotFound("job", text)
    return found


def read_jobs(uow: UnitOfWork, jobs: Sequence[Job]) -> list[JobRead]:
    """Jobs with their versions' numbers, by one query."""
    numbers = uow.repository.catalog.version_numbers([job.version_id for job in jobs])
    return [JobRead.of(job, numbers.get(job.version_id)) for job in jobs]


def _after(last_event_id: str | None) -> int:
    """The id to resume after; an id that is none of ours starts from the beginning."""
    text = (last_event_id or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
