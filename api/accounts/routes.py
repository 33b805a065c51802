"""`/v1/keys`, `/v1/usage`, `/v1/audit`: a tenant's own, for its administrators."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from api.accounts import calls
from api.accounts.schemas import AuditRead, AuditVerdict, KeyCreate, KeyCreated, KeyRead, KeyRotate, UsageRead
from api.deps import AdminRoute, CallerDep, ServicesDep, UowDep
from api.http.fields import Cursor, IdPath, PageLimit
from api.http.idempotency import IdempotencyHeader
from api.http.paging import Listed

router = APIRouter(prefix="/v1", tags=["account"], route_class=AdminRoute)

Since = Annotated[date | None, Query(description="first day (UTC); all days when left out")]


@router.get("/keys", summary="List keys")
def keys(caller: CallerDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[KeyRead]:
    """Your tenant's keys, revoked and expired ones too, newest first."""
    return calls.read_keys(uow, caller.tenant_id, cursor, limit)


@router.post("/keys", status_code=201, summary="Create a key", response_model=KeyCreated)
def add_key(
    body: KeyCreate, request: Request, caller: CallerDep, uow: UowDep, idempotency_key: IdempotencyHeader = None
) -> JSONResponse:
    """The secret is in the answer and nowhere else. A key can have no more rights than the one that makes it."""
    return calls.make_key(uow, caller, caller.tenant_id, body, request, idempotency_key)


@router.post("/keys/{key}/rotate", status_code=201, summary="Replace a key", response_model=KeyCreated)
def rotate_key(
    key: IdPath,
    body: KeyRotate,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """A new key with the same rights. The old one works for `overlap_s` longer, so that clients can change over."""
    return calls.replace_key(uow, caller, caller.tenant_id, key, body, request, idempotency_key)


@router.delete("/keys/{key}", summary="Revoke a key")
def drop_key(key: IdPath, caller: CallerDep, uow: UowDep, services: ServicesDep) -> KeyRead:
    """Works at once in this process and within seconds in all others. Revoking twice is the same."""
    return calls.drop_key(uow, caller, services, caller.tenant_id, key)


@router.get("/audit", summary="Read the audit log")
def audit(caller: CallerDep, uow: UowDep, cursor: Cursor = None, limit: PageLimit = 50) -> Listed[AuditRead]:
    """Your tenant's entries, newest first."""
    return calls.read_audit(uow, caller.tenant_id, cursor, limit)


@router.get("/audit/verify", summary="Check the audit log")
def verify(caller: CallerDep, uow: UowDep) -> AuditVerdict:
    """Computes the chain of digests again, from the first entry on."""
    return calls.check_audit(uow, caller.tenant_id)


@router.get("/usage", summary="Read the usage counters")
def usage(
    caller: CallerDep, uow: UowDep, since: Since = None, cursor: Cursor = None, limit: PageLimit = 50
) -> Listed[UsageRead]:
    """Your tenant's requests and tokens by day and profile, newest first; a few seconds behind.

    A request that is answered by several profiles, as comparisons are, counts once for each of them.
    """
    return calls.read_usage(uow, caller.tenant_id, since, cursor, limit)
