"""All tables. Every row but a base model's belongs to a tenant; base models are facts of the deployment."""

from profiles.models.accounts import ApiKey, AuditEntry, IdempotencyKey, Role, Tenant, Usage
from profiles.models.base import Base
from profiles.models.catalog import (
    AliasMove,
    Assignment,
    BaseModelRow,
    Profile,
    ProfileAlias,
    ProfileVersion,
    VersionState,
)
from profiles.models.fits import (
    SKETCH_SIZE,
    DirectionRow,
    FitQueryRow,
    PreferencePairRow,
    QueryRepresentations,
    QuerySource,
)
from profiles.models.jobs import FINISHED, Job, JobEvent, JobStatus, OutboxMessage

__all__ = [
    "FINISHED",
    "SKETCH_SIZE",
    "AliasMove",
    "ApiKey",
    "Assignment",
    "AuditEntry",
    "Base",
    "BaseModelRow",
    "DirectionRow",
    "FitQueryRow",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "JobStatus",
    "OutboxMessage",
    "PreferencePairRow",
    "Profile",
    "ProfileAlias",
    "ProfileVersion",
    "QueryRepresentations",
    "QuerySource",
    "Role",
    "Tenant",
    "Usage",
    "VersionState",
]
