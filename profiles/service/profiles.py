"""Profiles and versions: reading, renaming, deleting, archiving."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func

from profiles.errors import Conflict, InvalidSpec, NameTaken, NotFound, StillAssigned, VersionNotReady
from profiles.models import FitQueryRow, JobStatus, Profile, ProfileVersion, Role, VersionState
from profiles.paging import Page
from profiles.service.keys import Caller, lock_tenant
from profiles.spec import DESCRIPTION_LIMIT, check_name, check_text, profile_ref
from profiles.uow import UnitOfWork


def list_profiles(uow: UnitOfWork, caller: Caller, cursor: str | None = None, limit: int = 50) -> Page[Profile]:
    """The caller's live profiles, newest first."""
    return uow.repository.catalog.profiles(caller.tenant_id, cursor, limit)


def all_profiles(uow: UnitOfWork, caller: Caller, cursor: str | None = None, limit: int = 50) -> Page[Profile]:
    """Live profiles of all tenants, newest first. Raises: Forbidden: not an operator."""
    caller.require(Role.OPERATOR)
    return uow.repository.catalog.profiles(None, cursor, limit)


def get_profile(uow: UnitOfWork, caller: Caller, profile: UUID | str, *, lock: bool = False) -> Profile:
    """A live profile of the caller by id or name.

    Args:
        lock: until the transaction ends, no other one can change the profile's versions or aliases.
    Raises: NotFound: also for a deleted profile, or one of another tenant.
    """
    row = uow.repository.catalog.profile(caller.tenant_id, profile_ref(profile), lock=lock)
    if row is None:
        raise NotFound("profile", profile)
    return row


def update_profile(
    uow: UnitOfWork, caller: Caller, profile: UUID | str, *, name: str | None = None, description: str | None = None
) -> Profile:
    """Renames or describes a profile. None does not change a field; an empty description removes it.

    Raises: NotFound, NameTaken, InvalidSpec.
    """
    row = get_profile(uow, caller, profile, lock=True)
    changed = []
    if name is not None and name != row.name:
        check_name("name", name)
        # Under the tenant's lock, because two renames could choose one name. At creation, an index decides.
        lock_tenant(uow, caller.tenant_id)
        if uow.repository.catalog.profile(caller.tenant_id, name) is not None:
            raise NameTaken("profile", name)
        changed.append("name")
        row.name = name
    if description is not None:
        row.description = check_text("description", description, DESCRIPTION_LIMIT) if description else None
        changed.append("description")
    row.updated_at = func.now()
    uow.session.flush()
    uow.session.refresh(row)
    if changed:
        uow.repository.accounts.audit(
            caller.tenant_id, caller.key_id, "profile.update", "profile", row.id, changed=changed
        )
    return row


def delete_profile(uow: UnitOfWork, caller: Caller, profile: UUID | str) -> Profile:
    """Archives a profile and its versions, cancels its jobs, removes its assignments, and releases its name.

    Raises: NotFound.
    """
    row = get_profile(uow, caller, profile, lock=True)
    note_deletion(uow, caller, row.id, archive_profile(uow, row))
    return row


def archive_profile(uow: UnitOfWork, row: Profile) -> int:
    """What `delete_profile` does to a locked profile, without the entry in the audit log; its number of end users."""
    jobs = uow.repository.jobs
    for job in jobs.open_of_profile(row.id):
        if job.status is JobStatus.QUEUED:
            jobs.finish(job, JobStatus.CANCELLED, "cancelled", "the profile was deleted")
        else:
            job.cancel_requested_at = func.clock_timestamp()
    uow.session.flush()
    uow.repository.catalog.archive_versions(row.id)
    removed = uow.repository.catalog.remove_assignments_of(row.id)
    row.archived_at = func.now()
    row.updated_at = func.now()
    uow.session.flush()
    uow.session.refresh(row)
    return removed


def note_deletion(uow: UnitOfWork, caller: Caller, profile_id: UUID, assignments: int) -> None:
    """The entry in the audit log. It comes last: it locks the log, for which holders of other locks may wait."""
    details = {"assignments": assignments}
    uow.repository.accounts.audit(caller.tenant_id, caller.key_id, "profile.delete", "profile", profile_id, **details)


def list_versions(
    uow: UnitOfWork, caller: Caller, profile: UUID | str, cursor: str | None = None, limit: int = 50
) -> Page[ProfileVersion]:
    """A profile's versions, highest number first. Raises: NotFound."""
    row = get_profile(uow, caller, profile)
    return uow.repository.catalog.versions(row.id, cursor, limit)


def get_version(uow: UnitOfWork, caller: Caller, profile: UUID | str, number: int) -> ProfileVersion:
    """A version by its number. Raises: NotFound: profile or version."""
    row = get_profile(uow, caller, profile)
    version = uow.repository.catalog.version(row.id, number) if 0 < number < 2**31 else None
    if version is None:
        raise NotFound("version", f"{number} of profile {row.name}")
    return version


def ready_version(uow: UnitOfWork, caller: Caller, profile: Profile, number: int) -> ProfileVersion:
    """A version that can be used. Raises: NotFound, VersionNotReady."""
    version = get_version(uow, caller, profile.id, number)
    if version.state is not VersionState.READY:
        raise not_ready(uow, profile.name, number, version.id, version.state)
    return version


def not_ready(uow: UnitOfWork, profile: str, number: int, version_id: UUID, state: VersionState) -> VersionNotReady:
    """The error for a version that is not ready, with its fit."""
    job = uow.repository.jobs.of_version(version_id)
    return VersionNotReady(profile, number, state.value, job.id if job else None)


def list_pairs(
    uow: UnitOfWork, caller: Caller, profile: UUID | str, number: int, cursor: str | None = None, limit: int = 50
) -> Page[FitQueryRow]:
    """A version's fit queries by position, with their pairs. Raises: NotFound."""
    version = get_version(uow, caller, profile, number)
    return uow.repository.fits.query_page(version.id, cursor, limit)


def parse_number(text: str) -> int:
    """A version number from text. Raises: InvalidSpec."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not int(text):
        raise InvalidSpec("version", f"{text[:20]!r} is not a version number")
    return int(text)


def archive_version(uow: UnitOfWork, caller: Caller, profile: UUID | str, number: int) -> ProfileVersion:
    """Archives a ready version.

    Raises: NotFound. VersionNotReady. Conflict: an alias points to it. StillAssigned: end users have it.
    """
    row = get_profile(uow, caller, profile, lock=True)
    version = ready_version(uow, caller, row, number)
    for alias, targets in uow.repository.catalog.aliases([row.id])[row.id].items():
        if number in targets:
            raise Conflict(f"alias {alias!r} points to version {number}; move it first")
    users = uow.repository.catalog.assigned_users(row.id, version_id=version.id)
    if users:
        raise StillAssigned(f"version {number}", users)
    version.state = VersionState.ARCHIVED
    version.archived_at = func.now()
    uow.session.flush()
    uow.session.refresh(version)
    uow.repository.accounts.audit(caller.tenant_id, caller.key_id, "version.archive", "profile", row.id, version=number)
    return version
