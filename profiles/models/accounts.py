"""Tenants, API keys, the audit log, stored responses and usage counters."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    FetchedValue,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from profiles.models.base import Base, CreatedAt, PublicId, SerialId, TenantId, same_tenant, state_column


class Role(StrEnum):
    """The role of a key. Each has the rights of those below it."""

    OPERATOR = "operator"  #: runs the deployment: all tenants
    ADMIN = "admin"  #: keys, usage and audit log of its own tenant
    MEMBER = "member"  #: profiles, end users and jobs of its tenant
    INFERENCE = "inference"  #: generation only

    def includes(self, other: Role) -> bool:
        """True when this role has all rights of the other."""
        ranks = list(Role)
        return ranks.index(self) <= ranks.index(other)


class Tenant(Base):
    """A customer, with access to its own profiles, keys, jobs and end users only."""

    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("max_queued_jobs > 0", name="max_queued_jobs_positive"),)

    id: Mapped[PublicId]
    name: Mapped[str] = mapped_column(String(100), unique=True)
    max_queued_jobs: Mapped[int | None]  #: None: the deployment's default
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """A bearer key. Only the SHA-256 of its secret is stored.

    A bound key generates with one profile, or for one end user, only.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        same_tenant("profile_id", "profiles"),
        UniqueConstraint("id", "tenant_id"),
        CheckConstraint("role = 'inference' OR (profile_id IS NULL AND end_user IS NULL)", name="bound_for_inference"),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId] = mapped_column(index=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[Role] = mapped_column(state_column(Role, "role"))
    prefix: Mapped[str] = mapped_column(String(16))  #: first characters of the secret, by which users recognise the key
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    profile_id: Mapped[UUID | None] = mapped_column(index=True)
    end_user: Mapped[str | None] = mapped_column(String(200))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  #: exact to about a minute
    last_used_from: Mapped[str | None] = mapped_column(String(64))  #: the client's address at that time
    created_at: Mapped[CreatedAt]


class AuditEntry(Base):
    """One entry of the audit log, chained to the tenant's entry before it. Nobody can change or remove entries.

    A trigger fills `number`, `sha256`, `address`, `request_id` and `created_at` (see `profiles.service.audit`). Entries
    hold ids and no texts or names, because erasure cannot reach them.
    """

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "tenant_id", "id"), UniqueConstraint("tenant_id", "number"))

    id: Mapped[SerialId]
    tenant_id: Mapped[TenantId]
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))  #: None: the system
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(64))  #: kind of the object: profile, key, tenant, …
    subject_id: Mapped[str] = mapped_column(String(200))
    details: Mapped[dict[str, Any]]
    number: Mapped[int] = mapped_column(BigInteger, server_default=FetchedValue())  #: 1, 2, 3 … within the tenant
    sha256: Mapped[bytes] = mapped_column(LargeBinary(32), server_default=FetchedValue())
    address: Mapped[str | None] = mapped_column(String(64), server_default=FetchedValue())  #: of the client
    request_id: Mapped[str | None] = mapped_column(String(128), server_default=FetchedValue())
    created_at: Mapped[CreatedAt]


class IdempotencyKey(Base):
    """The stored response to a request, which a repetition of the request gets again."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    status_code: Mapped[int | None]
    response: Mapped[dict[str, Any] | None]
    created_at: Mapped[CreatedAt]


class Usage(Base):
    """Counters of one day and profile. `profile_id` is None for requests to the bare base model."""

    __tablename__ = "usage"
    __table_args__ = (
        same_tenant("profile_id", "profiles"),
        UniqueConstraint("tenant_id", "day", "profile_id", postgresql_nulls_not_distinct=True),
    )

    id: Mapped[SerialId]
    tenant_id: Mapped[TenantId]
    day: Mapped[date]
    profile_id: Mapped[UUID | None] = mapped_column(index=True)
    requests: Mapped[int] = mapped_column(BigInteger, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    fit_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
