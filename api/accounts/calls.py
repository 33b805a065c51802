"""Reads and changes of one tenant's keys, usage and audit log, for its administrators and for operators."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from uuid import UUID

from fastapi import Request
from fastapi.responses import JSONResponse

from api.accounts.schemas import AuditRead, AuditVerdict, KeyCreate, KeyCreated, KeyRead, KeyRotate, UsageRead
from api.http.idempotency import once
from api.http.paging import Listed
from api.services import Services
from profiles.errors import NotFound
from profiles.service import (
    Caller,
    audit_entries,
    create_key,
    list_keys,
    revoke_key,
    rotate_key,
    usage_since,
    verify_audit,
)
from profiles.spec import parse_id
from profiles.uow import UnitOfWork


def read_keys(uow: UnitOfWork, tenant_id: UUID, cursor: str | None, limit: int) -> Listed[KeyRead]:
    """A page of keys."""
    page = list_keys(uow, tenant_id, cursor, limit)
    return Listed(data=[KeyRead.model_validate(row) for row in page.rows], next=page.next)


def make_key(
    uow: UnitOfWork, caller: Caller, tenant_id: UUID, body: KeyCreate, request: Request, idempotency_key: str | None
) -> JSONResponse:
    """The response with a new key."""

    def make() -> KeyCreated:
        return KeyCreated.of(*create_key(uow, tenant_id, body.spec(), by=caller))

    return once(uow, _at(uow, caller, tenant_id), idempotency_key, request, body, 201, make, secret="secret")


def replace_key(
    uow: UnitOfWork,
    caller: Caller,
    tenant_id: UUID,
    key: str,
    body: KeyRotate,
    request: Request,
    idempotency_key: str | None,
) -> JSONResponse:
    """The response with the key in another one's place."""

    def make() -> KeyCreated:
        overlap = timedelta(seconds=body.overlap_s)
        return KeyCreated.of(*rotate_key(uow, tenant_id, _id_of(key), overlap, by=caller))

    return once(uow, _at(uow, caller, tenant_id), idempotency_key, request, body, 201, make, secret="secret")


def _at(uow: UnitOfWork, caller: Caller, tenant_id: UUID) -> Caller:
    """The caller at a tenant: a response is stored with the rows it shows, so that an erasure there finds it."""
    if tenant_id != caller.tenant_id and uow.repository.accounts.tenant(tenant_id) is None:
        raise NotFound("tenant", tenant_id)
    return replace(caller, tenant_id=tenant_id)


def drop_key(uow: UnitOfWork, caller: Caller, services: Services, tenant_id: UUID, key: str) -> KeyRead:
    """The revoked key, which this process has forgotten."""
    row = revoke_key(uow, tenant_id, _id_of(key), by=caller)
    services.auth.forget(row.id)
    return KeyRead.model_validate(row)


def read_audit(uow: UnitOfWork, tenant_id: UUID, cursor: str | None, limit: int) -> Listed[AuditRead]:
    """A page of the audit log."""
    page = audit_entries(uow, tenant_id, cursor, limit)
    return Listed(data=[AuditRead.model_validate(row) for row in page.rows], next=page.next)


def check_audit(uow: UnitOfWork, tenant_id: UUID) -> AuditVerdict:
    """The verdict on the audit log's chain."""
    return AuditVerdict.model_validate(verify_audit(uow, tenant_id))


def read_usage(
    uow: UnitOfWork, tenant_id: UUID, since: date | None, cursor: str | None, limit: int
) -> Listed[UsageRead]:
    """A page of counters."""
    page = usage_since(uow, tenant_id, since, cursor, limit)
    return Listed(data=[UsageRead.model_validate(row) for row in page.rows], next=page.next)


def _id_of(key: str) -> UUID:
    key_id = parse_id(key)
    if key_id is None:
        raise NotFound("key", key)
    return key_id
