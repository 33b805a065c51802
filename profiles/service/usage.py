"""Counters per tenant, day and profile."""

from __future__ import annotations

from datetime import date
from uuid import UUID

from profiles.models import Usage
from profiles.service.keys import Caller
from profiles.uow import UnitOfWork


def record_usage(
    uow: UnitOfWork,
    caller: Caller,
    profile_id: UUID | None,
    *,
    requests: int = 1,
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
    fit_tokens: int = 0,
) -> None:
    """Adds to today's counters; `profile_id` None is the bare base model."""
    uow.repository.accounts.count_usage(
        caller.tenant_id, profile_id, requests, prompt_tokens, completion_tokens, fit_tokens
    )


def usage_since(uow: UnitOfWork, caller: Caller, since: date) -> list[Usage]:
    """The tenant's counters from a day on."""
    return uow.repository.accounts.usage(caller.tenant_id, since)
