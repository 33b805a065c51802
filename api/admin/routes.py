"""`/admin`: tenants, and everybody's profiles, for operators. Keys, usage and audit log: `api.accounts`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api.accounts.receipts import ReceiptRead
from api.deps import CallerDep, OperatorRoute, UowDep
from api.http.fields import Body, Cursor, IdPath, PageLimit, Row, ShortText
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from api.profiles.routes import read_profiles
from api.profiles.schemas import ProfileRead
from profiles.errors import NotFound
from profiles.service import all_profiles, create_tenant, erase_tenant, list_tenants, tenant_to_read
from profiles.spec import parse_id

router = APIRouter(prefix="/admin", tags=["admin"], route_class=OperatorRoute)


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


class OwnedProfile(ProfileRead):
    """A profile, and whose it is."""

    tenant_id: UUID


@router.get("/profiles", summary="List everybody's profiles")
def every_profile(caller: CallerDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[OwnedProfile]:
    """Live profiles of all tenants, newest first."""
    page = all_profiles(uow, caller, cursor, limit)
    for tenant_id in sorted({row.tenant_id for row in page.rows}):  # in one order: each locks a tenant's log
        tenant_to_read(uow, caller, tenant_id, "profiles")
    read = read_profiles(uow, page.rows)
    return Listed(
        data=[
            OwnedProfile(**profile.model_dump(), tenant_id=row.tenant_id)
            for profile, row in zip(read, page.rows, strict=True)
        ],
        next=page.next,
    )
