"""All tables. Every row belongs to a tenant, except base models, which belong to the deployment."""

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
    Evaluation,
    FitQueryRow,
    PreferencePairRow,
    QueryRepresentations,
    QuerySource,
    QuerySplit,
    VersionEdit,
)
from profiles.models.jobs import FINISHED, Job, JobEvent, JobKind, JobStatus, JobText, OutboxMessage

__all__ = [
    "FINISHED", "SKETCH_SIZE", "AliasMove", "ApiKey", "Assignment", "AuditEntry", "Base", "BaseModelRow",
    "Evaluation", "FitQueryRow", "IdempotencyKey", "Job", "JobEvent", "JobKind", "JobStatus", "JobText",
    "OutboxMessage", "PreferencePairRow", "Profile", "ProfileAlias", "ProfileVersion", "QueryRepresentations",
    "QuerySource", "QuerySplit", "Role", "Tenant", "Usage", "VersionEdit", "VersionState",
]  # fmt: skip
