"""Shapes of keys, usage counters and audit entries."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from api.http.fields import Body, EndUser, Moment, ProfileRef, Row, ShortText
from profiles.models import ApiKey
from profiles.service import KeySpec

RoleName = Literal["operator", "admin", "member", "inference"]

#: Longest time that a rotated key goes on working.
_MAX_OVERLAP = timedelta(days=30)


class KeyCreate(Body):
    """A new key.

    `inference` generates only; `member` also manages profiles, end users and jobs; `admin` also keys, usage and audit
    log of its tenant; `operator` also tenants.
    """

    name: Annotated[ShortText, Field(max_length=100)]
    role: RoleName = "member"
    expires_at: Moment | None = None
    profile: ProfileRef | None = Field(None, description="the only profile of an inference key, by id or name")
    end_user: EndUser | None = Field(None, description="the only end user of an inference key")

    def spec(self) -> KeySpec:
        """For the service."""
        return KeySpec(self.role, self.name, self.expires_at, self.profile, self.end_user)


class KeyRotate(Body):
    """How long the old key goes on working."""

    overlap_s: Annotated[int, Field(ge=0, le=int(_MAX_OVERLAP.total_seconds()))] = 3600


class KeyRead(Row):
    """A key without its secret; `prefix` is the secret's beginning, to recognise it by."""

    id: UUID
    tenant_id: UUID
    name: str
    role: RoleName
    prefix: str
    profile_id: UUID | None
    end_user: str | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    last_used_from: str | None
    created_at: datetime


class KeyCreated(KeyRead):
    """A new key; the secret is shown this once (null when an `Idempotency-Key` replays the answer)."""

    secret: str | None

    @classmethod
    def of(cls, row: ApiKey, secret: str) -> KeyCreated:
        """A key that was just made."""
        return cls(**KeyRead.model_validate(row).model_dump(), secret=secret)


class AuditRead(Row):
    """An entry of the audit log."""

    id: int
    tenant_id: UUID
    key_id: UUID | None
    action: str
    subject: str
    subject_id: str
    details: dict[str, Any]
    number: int
    address: str | None
    request_id: str | None
    created_at: datetime


class AuditVerdict(Row):
    """Whether the log is as it was written. Keep `entries` and `head` elsewhere, to show later that none is missing."""

    entries: int
    head: str = Field(description="digest of the last entry (SHA-256, hex)")
    first_wrong: int | None = Field(description="number of the first entry that was changed or is missing")


class UsageRead(Row):
    """One tenant's use of one profile on one day (UTC); `profile_id` null is the bare base model."""

    tenant_id: UUID
    day: date
    profile_id: UUID | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    fit_tokens: int
