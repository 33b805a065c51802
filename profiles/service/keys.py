"""Tenants and API keys: the identity and the rights of a caller."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from profiles.errors import Conflict, Forbidden, InvalidSpec, NameTaken, NotFound, Unauthenticated
from profiles.models import ApiKey, Role, Tenant
from profiles.paging import Page
from profiles.spec import check_end_user, check_text, check_time, profile_ref, user_digest
from profiles.uow import UnitOfWork

_PREFIX = "az_"
_SHOWN = 9  #: characters of a secret that identify it in lists: the prefix and 36 of its 256 bits


@dataclass(frozen=True)
class Caller:
    """Tenant and rights of a request.

    Args:
        key_id: None for the command line on the server.
        profile_id: the only profile that a bound key generates with. end_user: the only end user it generates for.
    """

    key_id: UUID | None
    tenant_id: UUID
    role: Role
    profile_id: UUID | None = None
    end_user: str | None = None

    def require(self, role: Role) -> None:
        """Raises: Forbidden: the key's role does not include this one."""
        if not self.role.includes(role):
            raise Forbidden(role.value)


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
    uow.repository.accounts.audit(tenant.id, _key_id(by), "tenant.create", "tenant", tenant.id)
    return tenant


def erased_name(tenant_id: UUID) -> str:
    """The name of an erased tenant."""
    return f"erased {tenant_id}"


def lock_tenant(uow: UnitOfWork, tenant_id: UUID) -> Tenant:
    """Locks a tenant until the transaction ends; whoever locks a profile too, locks that first.

    Whatever makes rows with texts or keys calls this: a request that began before its tenant was erased must not write
    after that.

    Raises: NotFound: no such tenant, or it was erased.
    """
    tenant = uow.repository.accounts.lock_tenant(tenant_id)
    if tenant is None or tenant.name == erased_name(tenant_id):
        raise NotFound("tenant", tenant_id)
    return tenant


def ensure_tenant(uow: UnitOfWork, name: str) -> Tenant:
    """The tenant of this name, created if it is missing; for set-up commands that may run twice."""
    return uow.repository.accounts.tenant_by_name(name) or create_tenant(uow, name)


def list_tenants(uow: UnitOfWork, cursor: str | None = None, limit: int = 50) -> Page[Tenant]:
    """All tenants, newest first; for operators."""
    return uow.repository.accounts.tenants(cursor, limit)


@dataclass(frozen=True)
class KeySpec:
    """What a key is for.

    Args:
        profile, end_user: bind an inference key to generation with one profile (id or name), or for one end user.
        expires_at: with a time zone; None: never.
    """

    role: Role | str
    name: str
    expires_at: datetime | None = None
    profile: UUID | str | None = None
    end_user: str | None = None


def create_key(uow: UnitOfWork, tenant_id: UUID, spec: KeySpec, *, by: Caller | None = None) -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown once and stored as a SHA-256 only.

    A fast hash suffices, because nobody can guess 32 random bytes.

    Raises: NotFound: no such tenant or profile. Forbidden: the role has more rights than the caller's. InvalidSpec: an
        unknown role, an expiry in the past or without time zone, a bound key of another role than inference.
    """
    check_text("name", spec.name, 100)
    if spec.role not in list(Role):
        raise InvalidSpec("role", f"must be one of {', '.join(Role)}")
    role = Role(spec.role)
    if by is not None:
        by.require(role)
    expires_at = spec.expires_at
    if expires_at is not None:
        expires_at = check_time("expires_at", expires_at)
        if expires_at <= datetime.now(UTC):
            raise InvalidSpec("expires_at", "is in the past")
    if role is not Role.INFERENCE and (spec.profile, spec.end_user) != (None, None):
        raise InvalidSpec("role", "must be inference for a key that is bound to a profile or an end user")
    key = ApiKey(tenant_id=tenant_id, name=spec.name, role=role, expires_at=expires_at)
    if spec.profile is not None:
        # Locked, because an erasure at the same time would not see the new key.
        profile = uow.repository.catalog.profile(tenant_id, profile_ref(spec.profile), lock=True)
        if profile is None:
            raise NotFound("profile", spec.profile)
        key.profile_id = profile.id
    if spec.end_user is not None:
        key.end_user = check_end_user(spec.end_user)
    lock_tenant(uow, tenant_id)
    secret = _store(uow, key)
    bound = {"profile": str(key.profile_id)} if key.profile_id else {}
    bound |= {"end_user": user_digest(tenant_id, key.end_user)} if key.end_user else {}
    details = {"role": role.value, **bound}
    uow.repository.accounts.audit(tenant_id, _key_id(by), "key.create", "key", key.id, **details)
    return key, secret


def rotate_key(
    uow: UnitOfWork, tenant_id: UUID, key_id: UUID, overlap: timedelta, *, by: Caller | None = None
) -> tuple[ApiKey, str]:
    """A new key with the name, rights and expiry of another one, which works for `overlap` longer.

    Raises: NotFound. Forbidden: the key has more rights than the caller's. Conflict: the key no longer works.
    """
    lock_tenant(uow, tenant_id)
    old = _managed(uow, tenant_id, key_id, by)
    now = datetime.now(UTC)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict(f"key {key_id} no longer works; create another one")
    new = ApiKey(
        tenant_id=tenant_id, name=old.name, role=old.role, expires_at=old.expires_at, profile_id=old.profile_id,
        end_user=old.end_user,
    )  # fmt: skip
    secret = _store(uow, new)
    end = now + overlap
    old.expires_at = end if old.expires_at is None else min(old.expires_at, end)
    uow.session.flush()
    if not overlap:
        uow.repository.erasures.forget("key", [key_id])
    details = {"by_key": str(new.id), "works_until": old.expires_at.isoformat()}
    uow.repository.accounts.audit(tenant_id, _key_id(by), "key.rotate", "key", old.id, **details)
    return new, secret


def authenticate(uow: UnitOfWork, secret: str | None, address: str | None = None) -> Caller:
    """The caller with a key. Raises: Unauthenticated: the key is missing, unknown, expired or revoked.

    Args:
        address: of the client, stored with the time of use.
    """
    if not secret or len(secret) > 200:
        raise Unauthenticated
    key = uow.repository.accounts.key_by_digest(secret_digest(secret))
    if key is None:
        raise Unauthenticated
    uow.repository.accounts.touch_key(key.id, address)
    return Caller(key.id, key.tenant_id, key.role, key.profile_id, key.end_user)


def list_keys(uow: UnitOfWork, tenant_id: UUID, cursor: str | None = None, limit: int = 50) -> Page[ApiKey]:
    """A tenant's keys, with revoked and expired ones, newest first."""
    return uow.repository.accounts.keys(tenant_id, cursor, limit)


def revoke_key(uow: UnitOfWork, tenant_id: UUID, key_id: UUID, *, by: Caller | None = None) -> ApiKey:
    """Revokes a key at once; a repetition changes nothing.

    Raises: NotFound. Forbidden: the key has more rights than the caller's. Conflict: the caller is of this tenant, and
        this is its last valid admin key (the caller's own may have been revoked since the request began).
    """
    accounts = uow.repository.accounts
    lock_tenant(uow, tenant_id)
    key = _managed(uow, tenant_id, key_id, by)
    if key.revoked_at is None:
        own = by is not None and by.tenant_id == tenant_id and key.role.includes(Role.ADMIN)
        if own and not accounts.other_admin_keys(tenant_id, key_id):
            raise Conflict("this is the tenant's last working admin key; create another one first")
        key.revoked_at = datetime.now(UTC)
        uow.repository.erasures.forget("key", [key_id])
        accounts.audit(tenant_id, _key_id(by), "key.revoke", "key", key.id)
    return key


def _managed(uow: UnitOfWork, tenant_id: UUID, key_id: UUID, by: Caller | None) -> ApiKey:
    """A key that the caller may change. Raises: NotFound, Forbidden."""
    key = uow.repository.accounts.key(tenant_id, key_id)
    if key is None:
        raise NotFound("key", key_id)
    if by is not None:
        by.require(key.role)
    return key


def _store(uow: UnitOfWork, key: ApiKey) -> str:
    """Gives a new key its secret, which is returned, and stores it."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    key.prefix, key.secret_sha256 = secret[:_SHOWN], secret_digest(secret)
    uow.repository.accounts.add_key(key)
    return secret


def secret_digest(secret: str) -> bytes:
    """The stored form of a key's secret: 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _key_id(caller: Caller | None) -> UUID | None:
    return None if caller is None else caller.key_id
