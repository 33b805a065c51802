"""Tenants and API keys: the identity and the rights of a caller."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from profiles.errors import Conflict, Forbidden, InvalidSpec, NameTaken, NotFound, Unauthenticated
from profiles.models import ApiKey, AuditEntry, Role, Tenant
from profiles.paging import Page
from profiles.spec import check_text, check_time
from profiles.uow import UnitOfWork

_PREFIX = "az_"
_SHOWN = 9  #: characters of a secret that identify it in lists: the prefix and 36 of its 256 bits


@dataclass(frozen=True)
class Caller:
    """Tenant and role of a request. key_id: None for the command line on the server."""

    key_id: UUID | None
    tenant_id: UUID
    role: Role

    def require_admin(self) -> None:
        """Raises: Forbidden: the key is a member's."""
        if self.role is not Role.ADMIN:
            raise Forbidden(Role.ADMIN.value)


def create_tenant(
    uow: UnitOfWork, name: str, max_queued_jobs: int | None = None, *, by: Caller | None = None
) -> Tenant:
    """A new tenant; the first entry of its audit log names its creator. Raises: NameTaken, InvalidSpec."""
    check_text("name", name, 100)
    if max_queued_jobs is not None and max_queued_jobs < 1:
        raise InvalidSpec("max_queued_jobs", "must be at least 1")
    tenant = uow.repository.accounts.add_tenant(name, max_queued_jobs)
    if tenant is None:
        raise NameTaken("tenant", name)
    uow.repository.accounts.audit(tenant.id, _key_id(by), "tenant.create", "tenant", tenant.id, name=name)
    return tenant


def ensure_tenant(uow: UnitOfWork, name: str) -> Tenant:
    """The tenant of this name, created if it is missing; for set-up commands that may run twice."""
    return uow.repository.accounts.tenant_by_name(name) or create_tenant(uow, name)


def list_tenants(uow: UnitOfWork, cursor: str | None = None, limit: int = 50) -> Page[Tenant]:
    """All tenants, newest first; for administrators."""
    return uow.repository.accounts.tenants(cursor, limit)


def create_key(
    uow: UnitOfWork,
    tenant_id: UUID,
    role: Role | str,
    name: str,
    expires_at: datetime | None = None,
    *,
    by: Caller | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown once and stored as a SHA-256 only.

    A fast hash suffices, because nobody can guess 32 random bytes.

    Raises: NotFound: no such tenant. InvalidSpec: unknown role, an expiry in the past or without time zone.
    """
    check_text("name", name, 100)
    if role not in list(Role):
        raise InvalidSpec("role", f"must be one of {', '.join(Role)}")
    if expires_at is not None:
        expires_at = check_time("expires_at", expires_at)
        if expires_at <= datetime.now(UTC):
            raise InvalidSpec("expires_at", "is in the past")
    accounts = uow.repository.accounts
    if accounts.tenant(tenant_id) is None:
        raise NotFound("tenant", tenant_id)
    secret = _PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        tenant_id=tenant_id,
        name=name,
        role=Role(role),
        prefix=secret[:_SHOWN],
        secret_sha256=_digest(secret),
        expires_at=expires_at,
    )
    accounts.add_key(key)
    accounts.audit(tenant_id, _key_id(by), "key.create", "key", key.id, name=name, role=key.role.value)
    return key, secret


def authenticate(uow: UnitOfWork, secret: str | None) -> Caller:
    """The caller with a key. Raises: Unauthenticated: the key is missing, unknown, expired or revoked."""
    if not secret or len(secret) > 200:
        raise Unauthenticated
    key = uow.repository.accounts.key_by_digest(_digest(secret))
    if key is None:
        raise Unauthenticated
    uow.repository.accounts.touch_key(key.id)
    return Caller(key.id, key.tenant_id, key.role)


def list_keys(uow: UnitOfWork, tenant_id: UUID, cursor: str | None = None, limit: int = 50) -> Page[ApiKey]:
    """A tenant's keys, with revoked and expired ones, newest first."""
    return uow.repository.accounts.keys(tenant_id, cursor, limit)


def revoke_key(uow: UnitOfWork, tenant_id: UUID, key_id: UUID, *, by: Caller | None = None) -> ApiKey:
    """Revokes a key at once; a repetition changes nothing.

    Raises: NotFound. Conflict: the key is the caller's own and the tenant's last valid admin key.
    """
    accounts = uow.repository.accounts
    key = accounts.key(tenant_id, key_id)
    if key is None:
        raise NotFound("key", key_id)
    if key.revoked_at is None:
        accounts.lock_tenant(tenant_id)
        if by is not None and by.key_id == key_id and not accounts.other_admin_keys(tenant_id, key_id):
            raise Conflict("this is the tenant's last working admin key; create another one first")
        key.revoked_at = datetime.now(UTC)
        accounts.audit(tenant_id, _key_id(by), "key.revoke", "key", key.id, name=key.name)
    return key


def audit_entries(uow: UnitOfWork, tenant_id: UUID, cursor: str | None = None, limit: int = 50) -> Page[AuditEntry]:
    """The tenant's audit log, newest first."""
    return uow.repository.accounts.audit_entries(tenant_id, cursor, limit)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _key_id(caller: Caller | None) -> UUID | None:
    return None if caller is None else caller.key_id
