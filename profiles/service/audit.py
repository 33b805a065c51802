"""The audit log: reading, refusals, and the proof that no entry was changed or removed.

Each entry's `sha256` covers the entry and the digest of the tenant's entry before it. Whoever keeps the last number and
digest elsewhere can later show that everything up to there is unchanged; without that, a changed entry needs all later
digests to be computed anew, which only the tables' owner can do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from uuid import UUID

from profiles.errors import NotFound
from profiles.models import AuditEntry, Role
from profiles.paging import Page
from profiles.service.keys import Caller, secret_digest
from profiles.uow import UnitOfWork


@dataclass(frozen=True)
class AuditProof:
    """The state of a tenant's chain.

    Args:
        entries: number of entries. head: digest of the last one, in hex; empty without entries.
        first_wrong: number of the first entry that is missing or was changed; None: the chain is intact.
    """

    entries: int
    head: str
    first_wrong: int | None


def audit_entries(uow: UnitOfWork, tenant_id: UUID, cursor: str | None = None, limit: int = 50) -> Page[AuditEntry]:
    """The tenant's audit log, newest first."""
    return uow.repository.accounts.audit_entries(tenant_id, cursor, limit)


def verify_audit(uow: UnitOfWork, tenant_id: UUID) -> AuditProof:
    """Computes the tenant's chain again."""
    digest, count, wrong = b"", 0, None
    for number, fields, stored in uow.repository.accounts.audit_chain(tenant_id):
        count += 1
        digest = hashlib.sha256(digest + "\x1f".join(fields).encode()).digest()
        if wrong is None and (number != count or digest != stored):
            wrong = count
        digest = stored
    return AuditProof(count, digest.hex(), wrong)


def note_refused_call(uow: UnitOfWork, caller: Caller, call: str, needs: Role) -> None:
    """Notes that a key lacked the role for a call."""
    uow.repository.accounts.audit(
        caller.tenant_id, caller.key_id, "call.refused", "key", caller.key_id, call=call, needs=needs.value
    )


def note_refused_key(uow: UnitOfWork, secret: str) -> None:
    """Notes the use of an expired or revoked key in its tenant's log. An unknown key belongs to nobody."""
    key = uow.repository.accounts.ended_key(secret_digest(secret))
    if key is not None:
        why = "revoked" if key.revoked_at is not None else "expired"
        uow.repository.accounts.audit(key.tenant_id, key.id, "key.refused", "key", key.id, why=why)


def tenant_to_read(uow: UnitOfWork, caller: Caller, tenant_id: UUID | None, what: str) -> UUID:
    """The tenant that an operator reads, which is the caller's own without another; the other's audit log notes it.

    Raises: NotFound: no such tenant.
    """
    if tenant_id is None or tenant_id == caller.tenant_id:
        return caller.tenant_id
    if uow.repository.accounts.tenant(tenant_id) is None:
        raise NotFound("tenant", tenant_id)
    uow.repository.accounts.audit(tenant_id, caller.key_id, "operator.read", "tenant", tenant_id, what=what)
    return tenant_id
