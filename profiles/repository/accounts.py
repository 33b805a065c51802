"""Tenants, keys, audit, idempotency and usage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from profiles.models import ApiKey, AuditEntry, IdempotencyKey, Role, Tenant, Usage
from profiles.models.base import new_id
from profiles.paging import Page, fetch_page

#: Conditions of a key that is neither revoked nor expired.
_VALID = (ApiKey.revoked_at.is_(None), ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.now()))


class Accounts:
    """Queries on tenants, keys, the audit log, stored responses and usage."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add_tenant(self, name: str, max_queued_jobs: int | None) -> Tenant | None:
        """The new tenant, or None if the name is taken (also by a transaction that has not committed yet)."""
        values = {"id": new_id(), "name": name, "max_queued_jobs": max_queued_jobs}
        statement = insert(Tenant).values(values).on_conflict_do_nothing(index_elements=["name"]).returning(Tenant)
        return self._session.scalars(statement).one_or_none()

    def tenant(self, tenant_id: UUID) -> Tenant | None:
        return self._session.get(Tenant, tenant_id)

    def tenant_by_name(self, name: str) -> Tenant | None:
        return self._session.scalars(select(Tenant).where(Tenant.name == name)).one_or_none()

    def tenants(self, cursor: str | None, limit: int) -> Page[Tenant]:
        return fetch_page(self._session, select(Tenant), Tenant.id, cursor, limit)

    def lock_tenant(self, tenant_id: UUID) -> Tenant | None:
        """Locks the tenant: all that count its jobs, change its keys or erase it wait until this one ends."""
        # FOR NO KEY UPDATE, so that others can write rows that refer to the tenant.
        statement = select(Tenant).where(Tenant.id == tenant_id).with_for_update(key_share=True)
        return self._session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()

    def add_key(self, key: ApiKey) -> None:
        self._session.add(key)
        self._session.flush()

    def key_by_digest(self, secret_sha256: bytes) -> ApiKey | None:
        """The key, or None if it is not valid now by the database's clock."""
        statement = select(ApiKey).where(ApiKey.secret_sha256 == secret_sha256, *_VALID)
        return self._session.scalars(statement).one_or_none()

    def ended_key(self, secret_sha256: bytes) -> ApiKey | None:
        """The key, if it exists; whoever asks knows that it is not valid."""
        return self._session.scalars(select(ApiKey).where(ApiKey.secret_sha256 == secret_sha256)).one_or_none()

    def touch_key(self, key_id: UUID, address: str | None) -> None:
        """Stores time and address of use, at most once a minute, so that requests do not wait for a row lock."""
        stale = ApiKey.last_used_at.is_(None) | (ApiKey.last_used_at < func.now() - timedelta(minutes=1))
        free = select(ApiKey.id).where(ApiKey.id == key_id, stale).with_for_update(skip_locked=True)
        statement = update(ApiKey).where(ApiKey.id == free.scalar_subquery())
        statement = statement.values(last_used_at=func.now(), last_used_from=address)
        self._session.execute(statement, execution_options={"synchronize_session": False})

    def key(self, tenant_id: UUID, key_id: UUID) -> ApiKey | None:
        statement = select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
        return self._session.scalars(statement).one_or_none()

    def keys(self, tenant_id: UUID, cursor: str | None, limit: int) -> Page[ApiKey]:
        statement = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
        return fetch_page(self._session, statement, ApiKey.id, cursor, limit)

    def keys_of_user(self, tenant_id: UUID, end_user: str) -> list[ApiKey]:
        """The keys that are bound to an end user."""
        statement = select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.end_user == end_user)
        return list(self._session.scalars(statement))

    def other_admin_keys(self, tenant_id: UUID, key_id: UUID) -> int:
        """Number of other keys of the tenant that are valid and may make keys."""
        statement = select(func.count()).where(
            ApiKey.tenant_id == tenant_id, ApiKey.id != key_id, ApiKey.role.in_((Role.OPERATOR, Role.ADMIN)), *_VALID
        )
        return self._session.scalars(statement).one()

    def audit(
        self, tenant_id: UUID, key_id: UUID | None, action: str, subject: str, subject_id: object, **details: Any
    ) -> None:
        """Appends to the audit log."""
        entry = AuditEntry(
            tenant_id=tenant_id,
            key_id=key_id,
            action=action,
            subject=subject,
            subject_id=str(subject_id),
            details=details,
        )
        self._session.add(entry)
        self._session.flush()

    def audit_entries(self, tenant_id: UUID, cursor: str | None, limit: int) -> Page[AuditEntry]:
        statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id)
        return fetch_page(self._session, statement, AuditEntry.id, cursor, limit)

    def audit_of(self, tenant_id: UUID, subject: str, subject_id: str) -> list[AuditEntry]:
        """All entries about one subject, oldest first."""
        about = (AuditEntry.subject == subject, AuditEntry.subject_id == subject_id)
        statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id, *about).order_by(AuditEntry.id)
        return list(self._session.scalars(statement))

    def audit_chain(self, tenant_id: UUID) -> Iterator[tuple[int, tuple[str, ...], bytes]]:
        """(number, the fields that the digest covers, stored digest) of each entry, in their order."""
        entry, text = AuditEntry, partial(cast, type_=Text)
        fields = (
            text(entry.number), text(entry.tenant_id), func.coalesce(text(entry.key_id), ""), entry.action,
            entry.subject, entry.subject_id, text(entry.details), func.coalesce(entry.address, ""),
            func.coalesce(entry.request_id, ""),
            func.to_char(func.timezone("UTC", entry.created_at), "YYYY-MM-DD HH24:MI:SS.US"),
        )  # fmt: skip
        named: list[Any] = [field.label(f"field_{i}") for i, field in enumerate(fields)]
        statement = select(entry.number, entry.sha256, *named).where(entry.tenant_id == tenant_id)
        rows = self._session.execute(statement.order_by(entry.number).execution_options(yield_per=1000))
        for number, digest, *values in rows:
            yield number, tuple(values), digest

    def claim_idempotency_key(self, tenant_id: UUID, key: str, request_sha256: bytes) -> IdempotencyKey | None:
        """None if this request now holds the key, else the existing row. Waits for a transaction that holds the key."""
        statement = (
            insert(IdempotencyKey)
            .values(tenant_id=tenant_id, key=key, request_sha256=request_sha256)
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.key)
        )
        while self._session.scalars(statement).one_or_none() is None:
            held = self._session.get(IdempotencyKey, (tenant_id, key))
            if held is not None:  # else it was removed between the two statements
                return held
        return None

    def store_response(self, tenant_id: UUID, key: str, status_code: int, response: dict[str, Any]) -> None:
        statement = (
            update(IdempotencyKey)
            .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
            .values(status_code=status_code, response=response)
        )
        self._session.execute(statement)

    def forget_idempotency_keys(self, days: int) -> int:
        """Removes old keys; returns their number."""
        statement = (
            delete(IdempotencyKey)
            .where(IdempotencyKey.created_at < func.now() - timedelta(days=days))
            .returning(IdempotencyKey.key)
        )
        return len(self._session.scalars(statement).all())

    def add_usage(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds to counters in one statement. A row has tenant, day and profile (each combination once) and counts."""
        names = ("requests", "prompt_tokens", "completion_tokens", "fit_tokens")
        add = insert(Usage).values([{**dict.fromkeys(names, 0), **row} for row in rows])
        sums = {name: getattr(Usage, name) + add.excluded[name] for name in names}
        self._session.execute(add.on_conflict_do_update(index_elements=["tenant_id", "day", "profile_id"], set_=sums))

    def usage(self, tenant_id: UUID, since: date | None, cursor: str | None, limit: int) -> Page[Usage]:
        statement = select(Usage).where(Usage.tenant_id == tenant_id)
        if since is not None:
            statement = statement.where(Usage.day >= since)
        return fetch_page(self._session, statement, Usage.id, cursor, limit)
