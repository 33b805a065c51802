"""Use cases: functions whose first parameter is the unit of work. They flush and never commit.

A function that acts for a caller has a `Caller` parameter and reads the rows of its tenant only.
"""

from profiles.service.aliases import (
    DEFAULT_ALIAS,
    AssignedProfile,
    aliases_of,
    assign_user,
    get_assignment,
    list_aliases,
    promote,
    remove_alias,
    remove_assignment,
    roll_back,
    set_alias,
)
from profiles.service.audit import (
    AuditProof,
    audit_entries,
    looked_at,
    note_refused_call,
    note_refused_key,
    verify_audit,
)
from profiles.service.erasure import Receipt, erase_profile, erase_tenant, erase_user, export_user
from profiles.service.idempotency import StoredResponse, begin_idempotent, finish_idempotent, request_digest
from profiles.service.jobs import cancel_job, fit_job, get_job, job_events, list_jobs, version_numbers
from profiles.service.keys import (
    Caller,
    KeySpec,
    authenticate,
    create_key,
    create_tenant,
    ensure_tenant,
    list_keys,
    list_tenants,
    revoke_key,
    rotate_key,
)
from profiles.service.lookup import (
    ActiveProfile,
    NearestGroups,
    ResolvedVersion,
    StoredEdit,
    Unserved,
    load_active,
    nearest_groups,
    nearest_representations,
    pick_version,
    resolve_for_user,
)
from profiles.service.models import ModelFacts, base_model_names, list_base_models, register_base_model
from profiles.service.profiles import (
    all_profiles,
    archive_version,
    delete_profile,
    get_profile,
    get_version,
    list_pairs,
    list_profiles,
    list_versions,
    update_profile,
)
from profiles.service.usage import UsageCount, record_usage, usage_since

__all__ = [
    "DEFAULT_ALIAS", "ActiveProfile", "AssignedProfile", "AuditProof", "Caller", "KeySpec", "ModelFacts",
    "NearestGroups", "Receipt", "ResolvedVersion", "StoredEdit", "StoredResponse", "Unserved", "UsageCount",
    "aliases_of", "all_profiles", "archive_version", "assign_user", "audit_entries", "authenticate",
    "base_model_names", "begin_idempotent", "cancel_job", "create_key", "create_tenant", "delete_profile",
    "ensure_tenant", "erase_profile", "erase_tenant", "erase_user", "export_user", "finish_idempotent", "fit_job",
    "get_assignment", "get_job", "get_profile", "get_version", "job_events", "list_aliases", "list_base_models",
    "list_jobs", "list_keys", "list_pairs", "list_profiles", "list_tenants", "list_versions", "load_active",
    "looked_at", "nearest_groups", "nearest_representations", "note_refused_call", "note_refused_key",
    "pick_version", "promote", "record_usage", "register_base_model", "remove_alias", "remove_assignment",
    "request_digest", "resolve_for_user", "revoke_key", "roll_back", "rotate_key", "set_alias", "update_profile",
    "usage_since", "verify_audit", "version_numbers",
]  # fmt: skip
