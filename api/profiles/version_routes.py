"""`/v1/profiles/{profile}/versions`, promotion and rollback."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api.deps import CallerDep, KeyedRoute, ServicesDep, UowDep
from api.http.fields import Cursor, NumberPath, PageLimit, ProfilePath
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from api.profiles.checks import check_spec
from api.profiles.routes import JOB_ACCEPTED, accepted, job_location
from api.profiles.schemas import FitAccepted, SpecBody
from api.profiles.version_schemas import PairRead, VersionRead, VersionSummary
from profiles.fitting.request import request_fit
from profiles.models import ProfileVersion
from profiles.service import archive_version, base_model_names, fit_job, get_version, list_pairs, list_versions
from profiles.uow import UnitOfWork
from telemetry.tracing import Origin

router = APIRouter(prefix="/v1/profiles/{profile}/versions", tags=["versions"], route_class=KeyedRoute)


class VersionCreate(SpecBody):
    """A changed spec; what is left out comes from the latest version, `fit` setting by setting."""

    promote: bool = Field(False, description="make it the default when it is ready and good")


@router.post(
    "",
    status_code=202,
    summary="Create a version",
    response_model=FitAccepted,
    responses=JOB_ACCEPTED,
)
def create(
    profile: ProfilePath,
    body: VersionCreate,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    services: ServicesDep,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """Queues a new fit of a profile. The versions before stay as they are; the default moves only with `promote`, and
    then only to a version that turns out good (`POST …/promote` with `force` takes a weak one)."""

    def make() -> FitAccepted:
        made = request_fit(
            uow,
            caller,
            body.to_spec(),
            profile=profile,
            promote=body.promote,
            max_queued_jobs=services.database.max_queued_jobs,
            origin=Origin.here(request.state.request_id),
            check=lambda spec: check_spec(services, spec),
        )
        return accepted(uow, made)

    return once(uow, caller, idempotency_key, request, body, 202, make, location=job_location)


@router.get("", summary="List versions")
def index(
    profile: ProfilePath, caller: CallerDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50
) -> Listed[VersionSummary]:
    """The profile's versions, highest number first."""
    page = list_versions(uow, caller, profile, cursor, limit)
    return Listed(data=[VersionSummary.model_validate(row) for row in page.rows], next=page.next)


@router.get("/{number}", summary="Show a version")
def show(profile: ProfilePath, number: NumberPath, caller: CallerDep, uow: UowDep) -> VersionRead:
    """Spec, resolved settings, diagnostics, quality and content hash."""
    return _in_full(uow, get_version(uow, caller, profile, number))


@router.get("/{number}/pairs", summary="List a version's preference pairs")
def pairs(
    profile: ProfilePath,
    number: NumberPath,
    caller: CallerDep,
    uow: UowDep,
    cursor: Cursor = None,
    limit: PageLimit = 50,
) -> Listed[PairRead]:
    """The model's answers to each fit query, in the queries' order; grows while the fit runs."""
    page = list_pairs(uow, caller, profile, number, cursor, limit)
    return Listed(data=[PairRead.of(row) for row in page.rows], next=page.next)


@router.post("/{number}/archive", summary="Archive a version", response_model=VersionRead)
def archive(
    profile: ProfilePath,
    number: NumberPath,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """Takes a ready version out of use; 409 while an alias points to it or end users are assigned to it."""

    def make() -> VersionRead:
        return _in_full(uow, archive_version(uow, caller, profile, number))

    return once(uow, caller, idempotency_key, request, None, 200, make)


def _in_full(uow: UnitOfWork, row: ProfileVersion) -> VersionRead:
    job = fit_job(uow, row)
    return VersionRead.in_full(row, base_model_names(uow).get(row.base_model_id), job.id if job else None)
