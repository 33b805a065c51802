"""Usage counters per tenant, day and profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from uuid import UUID

from profiles.models import Usage
from profiles.paging import Page
from profiles.uow import UnitOfWork

#: Rows per statement. Postgres allows 65535 parameters, and a row has seven.
_ROWS = 1000


@dataclass(frozen=True)
class UsageCount:
    """Counts to add to one row. day: in UTC. profile_id: None for the bare base model."""

    tenant_id: UUID
    day: date
    profile_id: UUID | None
    requests: int
    prompt_tokens: int
    completion_tokens: int


def record_usage(uow: UnitOfWork, counts: Sequence[UsageCount]) -> None:
    """Adds to the counters. Each combination of tenant, day and profile may occur once."""
    # In one order, because two processes that add to the same rows could otherwise deadlock.
    ordered = sorted(counts, key=lambda count: (count.tenant_id, count.day, str(count.profile_id)))
    for start in range(0, len(ordered), _ROWS):
        uow.repository.accounts.add_usage([asdict(count) for count in ordered[start : start + _ROWS]])


def usage_since(
    uow: UnitOfWork, tenant_id: UUID, since: date | None = None, cursor: str | None = None, limit: int = 50
) -> Page[Usage]:
    """The tenant's counters from a day on, newest first."""
    return uow.repository.accounts.usage(tenant_id, since, cursor, limit)
