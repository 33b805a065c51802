"""`/v1/profiles`: create, list, show, rename, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.accounts.receipts import ERASED, Erase, receipt
from api.deps import CallerDep, KeyedRoute, ServicesDep, UowDep
from api.http.fields import Cursor, PageLimit, ProfilePath
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from api.jobs.schemas import JobRead
from api.profiles.checks import check_spec
from api.profiles.schemas import FitAccepted, ProfileCreate, ProfileRead, ProfileUpdate
from api.profiles.version_schemas import VersionSummary
from profiles.fitting.request import FitRequest, request_fit
from profiles.models import Profile
from profiles.service import (
    aliases_of,
    base_model_names,
    delete_profile,
    erase_profile,
    get_profile,
    list_profiles,
    update_profile,
)
from profiles.uow import UnitOfWork
from telemetry.tracing import Origin

log = structlog.get_logger("api")
router = APIRouter(prefix="/v1/profiles", tags=["profiles"], route_class=KeyedRoute)

#: The responses of routes that queue a job.
JOB_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "the job"}}}
}


@router.post(
    "",
    status_code=202,
    summary="Create a profile",
    response_model=FitAccepted,
    responses=JOB_ACCEPTED,
)
def create(
    body: ProfileCreate,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    services: ServicesDep,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """Queues the fit of a new profile. A persona alone is enough: the model makes its own preference data.

    Queries without a persona use the default persona; a query with phrases of its own makes the behaviour depend on
    the context. Watch the job at `Location`; its version becomes the profile's default when the proof on
    held-out queries calls it good. `…/versions/1/report` shows the proof.
    """

    def make() -> FitAccepted:
        made = request_fit(
            uow,
            caller,
            body.to_spec(),
            name=body.name,
            description=body.description or None,
            base_model=body.base_model or services.served_name,
            max_queued_jobs=services.database.max_queued_jobs,
            origin=Origin.here(request.state.request_id),
            check=lambda spec: check_spec(services, spec),
        )
        return accepted(uow, made)

    return once(uow, caller, idempotency_key, request, body, 202, make, location=job_location)


@router.get("", summary="List profiles")
def index(caller: CallerDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[ProfileRead]:
    """Your profiles, newest first."""
    page = list_profiles(uow, caller, cursor, limit)
    return Listed(data=read_profiles(uow, page.rows), next=page.next)


@router.get("/{profile}", summary="Show a profile")
def show(profile: ProfilePath, caller: CallerDep, uow: UowDep) -> ProfileRead:
    """By id or name."""
    return read_profiles(uow, [get_profile(uow, caller, profile)])[0]


@router.patch("/{profile}", summary="Rename or describe a profile")
def update(profile: ProfilePath, body: ProfileUpdate, caller: CallerDep, uow: UowDep) -> ProfileRead:
    """Changes the given fields; the others stay as they are."""
    row = update_profile(uow, caller, profile, name=body.name, description=body.description)
    return read_profiles(uow, [row])[0]


@router.delete("/{profile}", status_code=204, summary="Delete a profile", responses=ERASED)
def delete(profile: ProfilePath, caller: CallerDep, uow: UowDep, erase: Erase = False) -> Response:
    """Archives its versions, cancels its jobs, takes it from its end users and frees its name.

    With `erase`, removes its texts, embeddings, edits and everything else of it for good, and answers with a receipt. A
    deleted profile is erased by its id.
    """
    if erase:
        return receipt(erase_profile(uow, caller, profile))
    delete_profile(uow, caller, profile)
    return Response(status_code=204)


def accepted(uow: UnitOfWork, made: FitRequest) -> FitAccepted:
    """The reply to a request for a fit."""
    log.info("fit_requested", job_id=str(made.job.id), profile=str(made.profile.id), version=made.version.number)
    return FitAccepted(
        profile=read_profiles(uow, [made.profile])[0],
        version=VersionSummary.model_validate(made.version),
        job=JobRead.of(made.job, made.version.number),
    )


def job_location(reply: dict[str, Any]) -> str:
    """Address of the job that fits the version."""
    return f"/v1/jobs/{reply['job']['id']}"


def read_profiles(uow: UnitOfWork, rows: Sequence[Profile]) -> list[ProfileRead]:
    """Profiles with their aliases and base models' names, by two queries however many they are."""
    if not rows:
        return []
    names, aliases = base_model_names(uow), aliases_of(uow, rows)
    return [ProfileRead.of(row, names.get(row.base_model_id), aliases[row.id]) for row in rows]
