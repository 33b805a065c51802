"""Keys, usage and audit log of one tenant: `/v1/…` of one's own, `/admin/…` of any for operators."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from api.accounts.schemas import AuditRead, AuditVerdict, KeyCreate, KeyCreated, KeyRead, KeyRotate, UsageRead
from api.deps import AdminRoute, CallerDep, OperatorRoute, ServicesDep, UowDep
from api.http.fields import Cursor, IdPath, PageLimit
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from profiles.errors import NotFound
from profiles.service import (
    Caller,
    audit_entries,
    create_key,
    list_keys,
    revoke_key,
    rotate_key,
    tenant_to_read,
    usage_since,
    verify_audit,
)
from profiles.spec import parse_id
from profiles.uow import UnitOfWork

own = APIRouter(prefix="/v1", tags=["account"], route_class=AdminRoute)
any_tenant = APIRouter(prefix="/admin", tags=["admin"], route_class=OperatorRoute)

Since = Annotated[date | None, Query(description="first day (UTC); all days when left out")]


async def _none() -> None:
    return None


async def _named(tenant: Annotated[UUID | None, Query(description="your own when left out")] = None) -> UUID | None:
    return tenant


def _add_routes(router: APIRouter, named: Any) -> None:
    """Adds the calls to a router.

    Args:
        named: dependency that gives the id of the tenant that a request names, or None for the caller's own.
    """

    @router.get("/keys", summary="List keys")
    def keys(
        caller: CallerDep, uow: UowDep, tenant: UUID | None = named, cursor: Cursor = None, limit: PageLimit = 50
    ) -> Listed[KeyRead]:
        """A tenant's keys, revoked and expired ones too, newest first."""
        page = list_keys(uow, tenant_to_read(uow, caller, tenant, "keys"), cursor, limit)
        return Listed(data=[KeyRead.model_validate(row) for row in page.rows], next=page.next)

    @router.post("/keys", status_code=201, summary="Create a key", response_model=KeyCreated)
    def add_key(
        body: KeyCreate,
        request: Request,
        caller: CallerDep,
        uow: UowDep,
        tenant: UUID | None = named,
        idempotency_key: IdempotencyHeader = None,
    ) -> JSONResponse:
        """The secret is in the answer and nowhere else. A key can have no more rights than the one that makes it."""
        at = _at(uow, caller, tenant)

        def make() -> KeyCreated:
            return KeyCreated.of(*create_key(uow, at.tenant_id, body.spec(), by=caller))

        return once(uow, at, idempotency_key, request, body, 201, make, secret="secret")

    @router.post("/keys/{key}/rotate", status_code=201, summary="Replace a key", response_model=KeyCreated)
    def replace_key(
        key: IdPath,
        body: KeyRotate,
        request: Request,
        caller: CallerDep,
        uow: UowDep,
        tenant: UUID | None = named,
        idempotency_key: IdempotencyHeader = None,
    ) -> JSONResponse:
        """A new key with the same rights. The old one works for `overlap_s` longer, so that clients can change over."""
        at = _at(uow, caller, tenant)

        def make() -> KeyCreated:
            overlap = timedelta(seconds=body.overlap_s)
            return KeyCreated.of(*rotate_key(uow, at.tenant_id, _id_of(key), overlap, by=caller))

        return once(uow, at, idempotency_key, request, body, 201, make, secret="secret")

    @router.delete("/keys/{key}", summary="Revoke a key")
    def drop_key(
        key: IdPath, caller: CallerDep, uow: UowDep, services: ServicesDep, tenant: UUID | None = named
    ) -> KeyRead:
        """Works at once, in every process. Revoking twice is the same."""
        row = revoke_key(uow, tenant or caller.tenant_id, _id_of(key), by=caller)
        services.auth.forget(row.id)
        return KeyRead.model_validate(row)

    @router.get("/audit", summary="Read the audit log")
    def audit(
        caller: CallerDep, uow: UowDep, tenant: UUID | None = named, cursor: Cursor = None, limit: PageLimit = 50
    ) -> Listed[AuditRead]:
        """A tenant's entries, newest first."""
        page = audit_entries(uow, tenant_to_read(uow, caller, tenant, "audit log"), cursor, limit)
        return Listed(data=[AuditRead.model_validate(row) for row in page.rows], next=page.next)

    @router.get("/audit/verify", summary="Check the audit log")
    def verify(caller: CallerDep, uow: UowDep, tenant: UUID | None = named) -> AuditVerdict:
        """Computes the chain of digests again, from the first entry on."""
        return AuditVerdict.model_validate(verify_audit(uow, tenant_to_read(uow, caller, tenant, "audit log")))

    @router.get("/usage", summary="Read the usage counters")
    def usage(
        caller: CallerDep,
        uow: UowDep,
        since: Since = None,
        tenant: UUID | None = named,
        cursor: Cursor = None,
        limit: PageLimit = 50,
    ) -> Listed[UsageRead]:
        """A tenant's requests and tokens by day and profile, newest first; a few seconds behind.

        A request that is answered by several profiles, as comparisons are, counts once for each of them.
        """
        page = usage_since(uow, tenant_to_read(uow, caller, tenant, "usage"), since, cursor, limit)
        return Listed(data=[UsageRead.model_validate(row) for row in page.rows], next=page.next)


_add_routes(own, Depends(_none))
_add_routes(any_tenant, Depends(_named))


def _at(uow: UnitOfWork, caller: Caller, tenant_id: UUID | None) -> Caller:
    """The caller at a tenant: a response is stored with the rows it shows, so that an erasure there finds it.

    Raises: NotFound: no such tenant.
    """
    if tenant_id is None or tenant_id == caller.tenant_id:
        return caller
    if uow.repository.accounts.tenant(tenant_id) is None:
        raise NotFound("tenant", tenant_id)
    return replace(caller, tenant_id=tenant_id)


def _id_of(key: str) -> UUID:
    key_id = parse_id(key)
    if key_id is None:
        raise NotFound("key", key)
    return key_id
