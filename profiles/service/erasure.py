"""Erasure of a profile, an end user or a tenant: rows, texts, embeddings, edits and stored responses.

What stays: numbers of usage, and the audit log, which holds ids only. The receipt is an entry of that log. Deletion
alone (`delete_profile`) archives and keeps everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from profiles.errors import Conflict, NotFound
from profiles.models import ApiKey, Profile
from profiles.service.keys import Caller, erased_name, lock_tenant
from profiles.service.profiles import archive_profile, note_deletion
from profiles.spec import check_end_user, profile_ref, user_digest
from profiles.uow import UnitOfWork


@dataclass(frozen=True)
class Receipt:
    """What was erased. removed: number of rows by table."""

    kind: str
    id: str
    removed: Mapping[str, int]
    erased_at: datetime


def erase_profile(uow: UnitOfWork, caller: Caller, profile: UUID | str) -> Receipt:
    """Erases a live profile by id or name, or a deleted one by id. A running fit of it stops.

    Raises: NotFound: also for a profile that is erased already.
    """
    row = _find(uow, caller, profile)
    removed, assignments = _erase(uow, row)
    if assignments is not None:
        note_deletion(uow, caller, row.id, assignments)
    return _receipt(uow, caller, "profile", str(row.id), removed)


def erase_user(uow: UnitOfWork, caller: Caller, end_user: str) -> Receipt:
    """Erases an end user's assignment and stored responses, and revokes the keys bound to them.

    Of texts that a profile was made from, only the caller knows whose they are: erase the profile.

    Raises: InvalidSpec: the id is malformed.
    """
    tenant_id = caller.tenant_id
    check_end_user(end_user)
    erasures = uow.repository.erasures
    lock_tenant(uow, tenant_id)
    removed = erasures.assignment(tenant_id, end_user) | erasures.responses(tenant_id, end_user)
    removed["api_keys"] = _drop_keys(uow, tenant_id, end_user=end_user)
    return _receipt(uow, caller, "user", user_digest(tenant_id, end_user), removed)


def erase_tenant(uow: UnitOfWork, caller: Caller, tenant_id: UUID) -> Receipt:
    """Erases all profiles, end users and keys of a tenant; its name becomes free. In the scope of the platform.

    The order of locks is that of all other work: profiles, tenant, rows, and the audit log at the end.

    Raises: NotFound. Conflict: it is the caller's own tenant.
    """
    if tenant_id == caller.tenant_id:
        raise Conflict("a tenant cannot be erased with a key of its own")
    catalog = uow.repository.catalog
    for profile_id in catalog.all_ids(tenant_id):
        catalog.any_profile(tenant_id, profile_id)
    tenant = lock_tenant(uow, tenant_id)
    owner = Caller(caller.key_id, tenant_id, caller.role)
    removed: Counter[str] = Counter()
    deleted: dict[UUID, int] = {}
    for profile_id in catalog.all_ids(tenant_id):
        row = catalog.any_profile(tenant_id, profile_id)
        if row is not None:
            counts, assignments = _erase(uow, row)
            removed.update(counts)
            if assignments is not None:
                deleted[profile_id] = assignments
    removed.update(uow.repository.erasures.tenant_rest(tenant_id))
    # Also the operator's: the response to the tenant's creation holds its name.
    removed.update(uow.repository.erasures.responses(None, str(tenant_id)))
    removed["api_keys"] += _drop_keys(uow, tenant_id)
    tenant.name = erased_name(tenant_id)
    for profile_id, assignments in deleted.items():
        note_deletion(uow, owner, profile_id, assignments)
    return _receipt(uow, owner, "tenant", str(tenant_id), removed)


def export_user(uow: UnitOfWork, caller: Caller, end_user: str) -> dict[str, Any]:
    """What is stored of an end user: assignment, keys, audit entries. Raises: InvalidSpec: the id is malformed."""
    check_end_user(end_user)
    found = uow.repository.catalog.assignment(caller.tenant_id, end_user)
    entries = uow.repository.accounts.audit_of(caller.tenant_id, "user", user_digest(caller.tenant_id, end_user))
    return {
        "user": end_user,
        "assignment": None if found is None else {
            "profile_id": str(found.profile_id), "alias": found.alias,
            "version_id": None if found.version_id is None else str(found.version_id),
            "created_at": found.created_at.isoformat(), "updated_at": found.updated_at.isoformat(),
        },
        "keys": [_key(key) for key in uow.repository.accounts.keys_of_user(caller.tenant_id, end_user)],
        "audit": [
            {"action": entry.action, "details": entry.details, "created_at": entry.created_at.isoformat()}
            for entry in entries
        ],
    }  # fmt: skip


def _key(key: ApiKey) -> dict[str, Any]:
    used = None if key.last_used_at is None else key.last_used_at.isoformat()
    return {"id": str(key.id), "name": key.name, "last_used_at": used, "last_used_from": key.last_used_from}


def _find(uow: UnitOfWork, caller: Caller, profile: UUID | str) -> Profile:
    catalog, ref = uow.repository.catalog, profile_ref(profile)
    if isinstance(ref, str):
        live = catalog.profile(caller.tenant_id, ref)
        ref = live.id if live is not None else ref
    row = None if isinstance(ref, str) else catalog.any_profile(caller.tenant_id, ref)
    if row is None or (row.archived_at is not None and not catalog.version_ids(row.id)):
        raise NotFound("profile", profile)
    return row


def _erase(uow: UnitOfWork, row: Profile) -> tuple[dict[str, int], int | None]:
    """Erases a locked profile; returns the removed rows, and of a live one the end users who had it."""
    versions = uow.repository.catalog.version_ids(row.id)
    keys = _drop_keys(uow, row.tenant_id, profile_id=row.id)
    assignments = archive_profile(uow, row) if row.archived_at is None else None
    removed = uow.repository.erasures.profile(row)
    removed["api_keys"] = keys
    uow.repository.erasures.forget("version", versions)
    return removed, assignments


def _drop_keys(uow: UnitOfWork, tenant_id: UUID, *, profile_id: UUID | None = None, end_user: str | None = None) -> int:
    lock_tenant(uow, tenant_id)  # a rotation at the same time would leave its new key
    keys = uow.repository.erasures.keys(tenant_id, profile_id=profile_id, end_user=end_user)
    uow.repository.erasures.forget("key", keys)
    return len(keys)


def _receipt(uow: UnitOfWork, caller: Caller, kind: str, id_: str, removed: Mapping[str, int]) -> Receipt:
    counts = {table: count for table, count in sorted(removed.items()) if count}
    uow.repository.accounts.audit(caller.tenant_id, caller.key_id, f"{kind}.erase", kind, id_, removed=counts)
    return Receipt(kind, id_, counts, datetime.now(UTC))
