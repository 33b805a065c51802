"""`/admin`: tenants, keys, audit log, usage, everybody's profiles. Administrators run the deployment: they see all
tenants."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api.deps import AdminDep, KeyedRoute, ServicesDep, UowDep
from api.http.fields import Body, Cursor, IdPath, Moment, PageLimit, Row, ShortText
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from api.profiles.routes import read_profiles
from api.profiles.schemas import ProfileRead
from profiles.errors import NotFound
from profiles.service import (
    all_profiles,
    audit_entries,
    create_key,
    create_tenant,
    list_keys,
    list_tenants,
    revoke_key,
    usage_since,
)
from profiles.spec import parse_id

router = APIRouter(prefix="/admin", tags=["admin"], route_class=KeyedRoute)

TenantQuery = Annotated[UUID | None, Query(description="your own when left out")]


class TenantCreate(Body):
    """A new customer."""

    name: Annotated[ShortText, Field(max_length=100)]
    max_queued_jobs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class TenantRead(Row):
    """A customer; `max_queued_jobs` null is the deployment's default."""

    id: UUID
    name: str
    max_queued_jobs: int | None
    created_at: datetime


class KeyCreate(Body):
    """A new key. An admin key may manage every tenant."""

    name: Annotated[ShortText, Field(max_length=100)]
    role: Literal["admin", "member"] = "member"
    tenant_id: UUID | None = Field(None, description="your own when left out")
    expires_at: Moment | None = None


class KeyRead(Row):
    """A key without its secret; `prefix` is the secret's beginning, to recognise it by."""

    id: UUID
    tenant_id: UUID
    name: str
    role: Literal["admin", "member"]
    prefix: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


class KeyCreated(KeyRead):
    """A new key; the secret is shown this once (null when an `Idempotency-Key` replays the answer)."""

    secret: str | None


class AuditRead(Row):
    """An entry of the audit log."""

    id: int
    tenant_id: UUID
    key_id: UUID | None
    action: str
    subject: str
    subject_id: str
    details: dict[str, Any]
    created_at: datetime


class UsageRead(Row):
    """One tenant's use of one profile on one day (UTC); `profile_id` null is the bare base model."""

    tenant_id: UUID
    day: date
    profile_id: UUID | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    fit_tokens: int


@router.get("/tenants", summary="List tenants")
def tenants(caller: AdminDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[TenantRead]:
    """All of them, newest first."""
    page = list_tenants(uow, cursor, limit)
    return Listed(data=[TenantRead.model_validate(row) for row in page.rows], next=page.next)


@router.post("/tenants", status_code=201, summary="Create a tenant", response_model=TenantRead)
def add_tenant(
    body: TenantCreate, request: Request, caller: AdminDep, uow: UowDep, idempotency_key: IdempotencyHeader = None
) -> JSONResponse:
    """Then create a key for it."""

    def make() -> TenantRead:
        return TenantRead.model_validate(create_tenant(uow, body.name, body.max_queued_jobs, by=caller))

    return once(uow, caller, idempotency_key, request, body, 201, make)


@router.get("/keys", summary="List keys")
def keys(
    caller: AdminDep, uow: UowDep, tenant: TenantQuery = None, cursor: Cursor = None, limit: PageLimit = 50
) -> Listed[KeyRead]:
    """A tenant's keys, revoked and expired ones too."""
    page = list_keys(uow, tenant or caller.tenant_id, cursor, limit)
    return Listed(data=[KeyRead.model_validate(row) for row in page.rows], next=page.next)


@router.post("/keys", status_code=201, summary="Create a key", response_model=KeyCreated)
def add_key(
    body: KeyCreate, request: Request, caller: AdminDep, uow: UowDep, idempotency_key: IdempotencyHeader = None
) -> JSONResponse:
    """The secret is in the answer and nowhere else."""

    def make() -> KeyCreated:
        row, secret = create_key(
            uow, body.tenant_id or caller.tenant_id, body.role, body.name, body.expires_at, by=caller
        )
        return KeyCreated(**KeyRead.model_validate(row).model_dump(), secret=secret)

    return once(uow, caller, idempotency_key, request, body, 201, make, secret="secret")


@router.delete("/keys/{key}", summary="Revoke a key")
def drop_key(key: IdPath, caller: AdminDep, uow: UowDep, services: ServicesDep, tenant: TenantQuery = None) -> KeyRead:
    """Works at once in this process and within seconds in all others. Revoking twice is the same."""
    key_id = parse_id(key)
    if key_id is None:
        raise NotFound("key", key)
    row = revoke_key(uow, tenant or caller.tenant_id, key_id, by=caller)
    services.auth.forget(key_id)
    return KeyRead.model_validate(row)


@router.get("/audit", summary="Read the audit log")
def audit(
    caller: AdminDep, uow: UowDep, tenant: TenantQuery = None, cursor: Cursor = None, limit: PageLimit = 50
) -> Listed[AuditRead]:
    """A tenant's entries, newest first."""
    page = audit_entries(uow, tenant or caller.tenant_id, cursor, limit)
    return Listed(data=[AuditRead.model_validate(row) for row in page.rows], next=page.next)


@router.get("/usage", summary="Read the usage counters")
def usage(
    caller: AdminDep,
    uow: UowDep,
    since: Annotated[date | None, Query(description="first day (UTC); all days when left out")] = None,
    tenant: TenantQuery = None,
    cursor: Cursor = None,
    limit: PageLimit = 50,
) -> Listed[UsageRead]:
    """A tenant's requests and tokens by day and profile, newest first; a few seconds behind.

    A request that is answered by several profiles, as comparisons are, counts once for each of them.
    """
    page = usage_since(uow, tenant or caller.tenant_id, since, cursor, limit)
    return Listed(data=[UsageRead.model_validate(row) for row in page.rows], next=page.next)


class OwnedProfile(ProfileRead):
    """A profile, and whose it is."""

    tenant_id: UUID


@router.get("/profiles", summary="List everybody's profiles")
def every_profile(caller: AdminDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[OwnedProfile]:
    """Live profiles of all tenants, newest first."""
    page = all_profiles(uow, caller, cursor, limit)
    read = read_profiles(uow, page.rows)
    return Listed(
        data=[
            OwnedProfile(**profile.model_dump(), tenant_id=row.tenant_id)
            for profile, row in zip(read, page.rows, strict=True)
        ],
        next=page.next,
    )
