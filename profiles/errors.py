"""All errors that `profiles` raises. They carry facts, never HTTP codes."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID


class ProfilesError(Exception):
    """Base class of this package's errors."""

    #: Stable, machine-readable name.
    code = "profiles_error"


class SecretsDirMissing(ProfilesError):
    """The variable that names the directory of secret files names something else."""

    code = "secrets_dir_missing"

    def __init__(self, variable: str, directory: str) -> None:
        super().__init__(f"{variable}: there is no directory {directory}")
        self.variable = variable
        self.directory = directory


class NotFound(ProfilesError):
    """The tenant has no such row. Another tenant's row counts as missing."""

    code = "not_found"

    def __init__(self, kind: str, ref: object) -> None:
        super().__init__(f"{kind} {ref} does not exist")
        self.kind = kind
        self.ref = str(ref)


class Conflict(ProfilesError):
    """The request is valid but conflicts with the present state."""

    code = "conflict"


class NameTaken(Conflict):
    """A live profile (or tenant) of this name exists."""

    code = "name_taken"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"a {kind} named {name!r} exists already")
        self.kind = kind
        self.name = name


class VersionNotReady(Conflict):
    """The version cannot be used: it is pending, failed or archived."""

    code = "version_not_ready"

    def __init__(self, profile: str, number: int | None, state: str, job_id: UUID | None) -> None:
        which = f"profile {profile!r}" if number is None else f"version {number} of profile {profile!r}"
        super().__init__(f"{which} is {state}, not ready")
        self.profile = profile
        self.number = number
        self.state = state
        self.job_id = job_id


class VersionWeak(Conflict):
    """A weak version cannot become the default without `force`."""

    code = "version_weak"

    def __init__(self, profile_name: str, number: int, reasons: Sequence[str]) -> None:
        super().__init__(
            f"version {number} of profile {profile_name!r} is weak ({'; '.join(reasons)}); "
            "set force to make it the default anyway"
        )
        self.profile_name = profile_name
        self.number = number
        self.reasons = tuple(reasons)


class NoDefaultVersion(Conflict):
    """The request names no version, and the profile has no default version."""

    code = "no_default_version"

    def __init__(self, profile_name: str, number: int, reasons: Sequence[str], job_id: UUID | None) -> None:
        super().__init__(
            f"profile {profile_name!r} has no default version: version {number} is ready but "
            f"{'weak (' + '; '.join(reasons) + ')' if reasons else 'was never promoted'}; promote one or name it"
        )
        self.profile_name = profile_name
        self.number = number  #: number of the latest ready version
        self.reasons = tuple(reasons)
        self.job_id = job_id


class ModelConflict(Conflict):
    """The profile was made for another base model."""

    code = "model_mismatch"

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"the profile belongs to base model {expected!r}, not to {got!r}")
        self.expected = expected
        self.got = got


class StillAssigned(Conflict):
    """An object that end users are assigned to cannot be removed; their requests would fail."""

    code = "still_assigned"

    def __init__(self, what: str, end_users: int) -> None:
        users = "1 end user" if end_users == 1 else f"{end_users} end users"
        super().__init__(f"{what} is assigned to {users}; give them another profile, alias or version first")
        self.end_users = end_users


class BaseModelNotServed(Conflict):
    """No process of this deployment has loaded the base model of the new profile."""

    code = "model_mismatch"  # as `ModelConflict`: to a client, both mean that the model is not served

    def __init__(self, expected: str | None, got: str) -> None:
        served = "none has been loaded here yet" if expected is None else f"the served one is {expected!r}"
        super().__init__(f"there is no base model {got!r} here; {served}")
        self.expected = expected
        self.got = got


class NothingToRollBackTo(Conflict):
    """The alias has no earlier target that is usable."""

    code = "nothing_to_roll_back_to"

    def __init__(self, profile: str) -> None:
        super().__init__(f"profile {profile!r} has no earlier default version to go back to")
        self.profile = profile


class JobFinished(Conflict):
    """The job has ended and cannot be cancelled."""

    code = "job_finished"

    def __init__(self, job_id: UUID, status: str) -> None:
        super().__init__(f"job {job_id} has already {status}")
        self.job_id = job_id
        self.status = status


class IdempotencyConflict(Conflict):
    """An earlier, different request had the same `Idempotency-Key`."""

    code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r} was used before with a different request")
        self.key = key


class QuotaExceeded(ProfilesError):
    """The tenant's queued and running jobs have reached the limit."""

    code = "quota_exceeded"

    def __init__(self, used: int, limit: int, retry_after_s: int) -> None:
        super().__init__(f"{used} jobs are waiting or running, the limit is {limit}")
        self.used = used
        self.limit = limit
        self.retry_after_s = retry_after_s


class InvalidSpec(ProfilesError, ValueError):
    """A field is malformed or exceeds its limit."""

    code = "invalid_spec"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Unauthenticated(ProfilesError):
    """The API key is missing, unknown, expired or revoked."""

    code = "unauthenticated"

    def __init__(self, message: str = "the API key is missing or not valid") -> None:
        super().__init__(message)


class Forbidden(ProfilesError):
    """The caller lacks the required role."""

    code = "forbidden"

    def __init__(self, needs: str) -> None:
        super().__init__(f"this needs the role {needs!r}")
        self.needs = needs


class LeaseLost(ProfilesError):
    """The job has ended or belongs to another attempt; this worker must stop writing."""

    code = "lease_lost"

    def __init__(self, job_id: UUID, attempt: int) -> None:
        super().__init__(f"attempt {attempt} no longer owns job {job_id}")
        self.job_id = job_id
        self.attempt = attempt


class JobCancelled(ProfilesError):
    """The job that this worker runs was cancelled."""

    code = "cancelled"

    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"job {job_id} was cancelled")
        self.job_id = job_id


class DatabaseUnavailable(ProfilesError):
    """Postgres is unreachable, not migrated, or a lock timed out; a later attempt may succeed."""

    code = "database_unavailable"

    def __init__(self, message: str = "the database cannot be reached", retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DatabaseFull(DatabaseUnavailable):
    """Postgres has no disk space left: reads work, writes fail."""

    code = "database_full"

    def __init__(self) -> None:
        super().__init__("the database's disk is full: nothing can be stored until its operator makes room", 30)


class UnsafeDatabaseRole(DatabaseUnavailable):
    """The processes connect as a role that row-level security does not hold for."""

    code = "unsafe_database_role"

    def __init__(self, role: str, why: str) -> None:
        super().__init__(
            f"the database role {role!r} {why}: give processes a URL of the role alignez_app, and the owner's URL to "
            "`alignez migrate` only",
            10,
        )


class BrokerUnavailable(ProfilesError):
    """The message broker is unreachable or did not confirm a message."""

    code = "broker_unavailable"

    def __init__(self, message: str = "the message broker cannot be reached", retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
