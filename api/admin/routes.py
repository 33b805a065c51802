"""`/admin`: tenants, and every tenant's keys, audit log, usage counters and profiles; for operators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api.accounts import calls
from api.accounts.receipts import ReceiptRead
from api.accounts.routes import Since
from api.accounts.schemas import AuditRead, AuditVerdict, KeyCreate, KeyCreated, KeyRead, KeyRotate, UsageRead
from api.deps import CallerDep, OperatorRoute, ServicesDep, UowDep
from api.http.fields import Body, Cursor, IdPath, PageLimit, Row, ShortText
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from api.profiles.routes import read_profiles
from api.profiles.schemas import ProfileRead
from profiles.errors import NotFound
from profiles.service import all_profiles, create_tenant, erase_tenant, list_tenants, looked_at
from profiles.spec import parse_id

router = APIRouter(prefix="/admin", tags=["admin"], route_class=OperatorRoute)

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


@router.get("/tenants", summary="List tenants")
def tenants(caller: CallerDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[TenantRead]:
    """All of them, newest first."""
    page = list_tenants(uow, cursor, limit)
    return Listed(data=[TenantRead.model_validate(row) for row in page.rows], next=page.next)


@router.post("/tenants", status_code=201, summary="Create a tenant", response_model=TenantRead)
def add_tenant(
    body: TenantCreate, request: Request, caller: CallerDep, uow: UowDep, idempotency_key: IdempotencyHeader = None
) -> JSONResponse:
    """Then create a key for it."""

    def make() -> TenantRead:
        return TenantRead.model_validate(create_tenant(uow, body.name, body.max_queued_jobs, by=caller))

    return once(uow, caller, idempotency_key, request, body, 201, make)


@router.delete("/tenants/{tenant}", summary="Erase a tenant")
def drop_tenant(tenant: IdPath, caller: CallerDep, uow: UowDep) -> ReceiptRead:
    """Removes its profiles, end users and keys for good. Its usage stays as numbers, its audit log as ids."""
    tenant_id = parse_id(tenant)
    if tenant_id is None:
        raise NotFound("tenant", tenant)
    return ReceiptRead.model_validate(erase_tenant(uow, caller, tenant_id))


@router.get("/keys", summary="List a tenant's keys")
def keys(
    caller: CallerDep, uow: UowDep, tenant: TenantQuery = None, cursor: Cursor = None, limit: PageLimit = 50
) -> Listed[KeyRead]:
    """Revoked and expired ones too, newest first."""
    return calls.read_keys(uow, looked_at(uow, caller, tenant, "keys"), cursor, limit)


@router.post("/keys", status_code=201, summary="Create a key for a tenant", response_model=KeyCreated)
def add_key(
    body: KeyCreate,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    tenant: TenantQuery = None,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """The secret is in the answer and nowhere else."""
    return calls.make_key(uow, caller, tenant or caller.tenant_id, body, request, idempotency_key)


@router.post("/keys/{key}/rotate", status_code=201, summary="Replace a tenant's key", response_model=KeyCreated)
def rotate_key(
    key: IdPath,
    body: KeyRotate,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    tenant: TenantQuery = None,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """As `/v1/keys/{key}/rotate`."""
    return calls.replace_key(uow, caller, tenant or caller.tenant_id, key, body, request, idempotency_key)


@router.delete("/keys/{key}", summary="Revoke a tenant's key")
def drop_key(key: IdPath, caller: CallerDep, uow: UowDep, services: ServicesDep, tenant: TenantQuery = None) -> KeyRead:
    """Works at once in this process and within seconds in all others. Revoking twice is the same."""
    return calls.drop_key(uow, caller, services, tenant or caller.tenant_id, key)


@router.get("/audit", summary="Read a tenant's audit log")
def audit(
    caller: CallerDep, uow: UowDep, tenant: TenantQuery = None, cursor: Cursor = None, limit: PageLimit = 50
) -> Listed[AuditRead]:
    """Newest entries first."""
    return calls.read_audit(uow, looked_at(uow, caller, tenant, "audit log"), cursor, limit)


@router.get("/audit/verify", summary="Check a tenant's audit log")
def verify(caller: CallerDep, uow: UowDep, tenant: TenantQuery = None) -> AuditVerdict:
    """As `/v1/audit/verify`."""
    return calls.check_audit(uow, looked_at(uow, caller, tenant, "audit log"))


@router.get("/usage", summary="Read a tenant's usage counters")
def usage(
    caller: CallerDep,
    uow: UowDep,
    since: Since = None,
    tenant: TenantQuery = None,
    cursor: Cursor = None,
    limit: PageLimit = 50,
) -> Listed[UsageRead]:
    """As `/v1/usage`."""
    return calls.read_usage(uow, looked_at(uow, caller, tenant, "usage"), since, cursor, limit)


class OwnedProfile(ProfileRead):
    """A profile, and whose it is."""

    tenant_id: UUID


@router.get("/profiles", summary="List everybody's profiles")
def every_profile(caller: CallerDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[OwnedProfile]:
    """Live profiles of all tenants, newest first."""
    page = all_profiles(uow, caller, cursor, limit)
    for tenant_id in sorted({row.tenant_id for row in page.rows}):  # in one order: each locks a tenant's log
        looked_at(uow, caller, tenant_id, "profiles")
    read = read_profiles(uow, page.rows)
    return Listed(
        data=[
            OwnedProfile(**profile.model_dump(), tenant_id=row.tenant_id)
            for profile, row in zip(read, page.rows, strict=True)
        ],
        next=page.next,
    )
