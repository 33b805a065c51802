"""Selection of versions: aliases, promotion and rollback, and the assignments of end users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from profiles.errors import InvalidSpec, NotFound, NothingToRollBackTo, StillAssigned, VersionWeak
from profiles.models import Assignment, Profile, ProfileVersion
from profiles.service.keys import Caller
from profiles.service.profiles import get_profile, get_version, ready_version
from profiles.spec import check_end_user, check_name, user_digest
from profiles.uow import UnitOfWork

DEFAULT_ALIAS = "default"
MAX_TARGETS = 10
#: Bounds of a weight. A smaller weight's share of the traffic would be rounded to 0.
MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6


@dataclass(frozen=True)
class AssignedProfile:
    """An end user's assignment, with its profile and version number."""

    assignment: Assignment
    profile: Profile
    version: int | None


def aliases_of(uow: UnitOfWork, profiles: Sequence[Profile]) -> dict[UUID, dict[str, dict[int, float]]]:
    """The aliases of each profile, by its id: alias → version number → weight."""
    return uow.repository.catalog.aliases([profile.id for profile in profiles])


def list_aliases(uow: UnitOfWork, caller: Caller, profile: UUID | str) -> dict[str, dict[int, float]]:
    """Alias → version number → share of its traffic. Raises: NotFound."""
    row = get_profile(uow, caller, profile)
    return uow.repository.catalog.aliases([row.id])[row.id]


def set_alias(
    uow: UnitOfWork,
    caller: Caller,
    profile: UUID | str,
    alias: str,
    version: int | None = None,
    weights: Mapping[int, float] | None = None,
    *,
    force: bool = False,
) -> dict[int, float]:
    """Points an alias to one version, or to several by weight; returns number → share (sum 1).

    Args:
        force: allow a weak version for `default`; other aliases always allow it.
    Raises: NotFound: profile or version. VersionNotReady. VersionWeak. InvalidSpec: not exactly one of version and
        weights, or invalid weights.
    """
    check_name("alias", alias)
    if (version is None) == (weights is None):
        raise InvalidSpec("version", "give either version or weights")
    shares = _shares({version: 1.0} if version is not None else weights or {})
    row = get_profile(uow, caller, profile, lock=True)
    _point(uow, caller, row, alias, shares, force=force)
    uow.repository.accounts.audit(
        caller.tenant_id, caller.key_id, "alias.set", "profile", row.id,
        alias=alias, targets=_text_keys(shares), **_forced(force),
    )  # fmt: skip
    return shares


def remove_alias(uow: UnitOfWork, caller: Caller, profile: UUID | str, alias: str) -> None:
    """Removes an alias. Raises: NotFound. InvalidSpec: it is `default`. StillAssigned: end users have it."""
    if alias == DEFAULT_ALIAS:
        raise InvalidSpec("alias", "the default alias cannot be removed")
    row = get_profile(uow, caller, profile, lock=True)
    if alias not in uow.repository.catalog.aliases([row.id])[row.id]:
        raise NotFound("alias", f"{alias} of profile {row.name}")
    users = uow.repository.catalog.assigned_users(row.id, alias=alias)
    if users:
        raise StillAssigned(f"alias {alias!r}", users)
    uow.repository.catalog.set_alias(row, alias, {})
    uow.repository.accounts.audit(caller.tenant_id, caller.key_id, "alias.remove", "profile", row.id, alias=alias)


def promote(
    uow: UnitOfWork, caller: Caller, profile: UUID | str, version: int, *, force: bool = False
) -> ProfileVersion:
    """Makes a version the profile's default.

    Args:
        force: allow a weak version; the audit log records it.
    Raises: NotFound, VersionNotReady, VersionWeak.
    """
    row = get_profile(uow, caller, profile, lock=True)
    _point(uow, caller, row, DEFAULT_ALIAS, {version: 1.0}, force=force)
    uow.repository.accounts.audit(
        caller.tenant_id, caller.key_id, "profile.promote", "profile", row.id, version=version, **_forced(force)
    )
    return get_version(uow, caller, row.id, version)


def roll_back(uow: UnitOfWork, caller: Caller, profile: UUID | str) -> dict[int, float]:
    """Restores the previous targets of `default`; returns number → share.

    A second rollback restores the targets before those. Targets that are not ready are skipped.

    Raises: NotFound, NothingToRollBackTo.
    """
    row = get_profile(uow, caller, profile, lock=True)
    catalog = uow.repository.catalog
    moves = catalog.standing_moves(row.id, DEFAULT_ALIAS, 50)
    for i, move in enumerate(moves[1:], 1):
        shares = {int(number): float(weight) for number, weight in move.targets.items()}
        ready = catalog.ready_numbers(row.id, list(shares))
        if len(ready) == len(shares):
            undone = moves[:i]
            break
    else:
        raise NothingToRollBackTo(row.name)
    for later in undone:
        catalog.undo_move(later)
    catalog.set_alias(row, DEFAULT_ALIAS, {ready[number]: weight for number, weight in shares.items()})
    uow.repository.accounts.audit(
        caller.tenant_id, caller.key_id, "profile.rollback", "profile", row.id,
        before=moves[0].targets, after=_text_keys(shares),
    )  # fmt: skip
    return shares


def point_default(uow: UnitOfWork, profile: Profile, version: ProfileVersion) -> None:
    """Makes a version that has just become ready the default. The profile must be locked."""
    uow.repository.catalog.set_alias(profile, DEFAULT_ALIAS, {version.id: 1.0})
    uow.repository.catalog.add_move(profile, DEFAULT_ALIAS, {version.number: 1.0}, None)
    uow.repository.accounts.audit(
        profile.tenant_id, None, "profile.promote", "profile", profile.id, version=version.number
    )


def assign_user(
    uow: UnitOfWork,
    caller: Caller,
    end_user: str,
    profile: UUID | str,
    *,
    alias: str | None = None,
    version: int | None = None,
) -> AssignedProfile:
    """Assigns a profile to an end user, by its default, another alias, or one version.

    Raises: NotFound: profile, alias or version. VersionNotReady. InvalidSpec: both alias and version.
    """
    check_end_user(end_user)
    if alias is not None and version is not None:
        raise InvalidSpec("alias", "give either alias or version")
    row = get_profile(uow, caller, profile, lock=True)  # a profile that is being deleted must not get new users
    version_id = None if version is None else ready_version(uow, caller, row, version).id
    if alias is not None and alias not in uow.repository.catalog.aliases([row.id])[row.id]:
        raise NotFound("alias", f"{alias} of profile {row.name}")
    assigned = AssignedProfile(uow.repository.catalog.assign(row, end_user, alias, version_id), row, version)
    _audit_user(uow, caller, "user.assign", end_user, profile=str(row.id), alias=alias, version=version)
    return assigned


def get_assignment(uow: UnitOfWork, caller: Caller, end_user: str) -> AssignedProfile:
    """The assignment of an end user. Raises: NotFound: there is none. InvalidSpec: the id is malformed."""
    catalog = uow.repository.catalog
    found = catalog.assignment(caller.tenant_id, check_end_user(end_user))
    if found is None:
        raise NotFound("profile of user", end_user)
    row = get_profile(uow, caller, found.profile_id)
    numbers = catalog.version_numbers([found.version_id]) if found.version_id else {}
    return AssignedProfile(found, row, numbers[found.version_id] if found.version_id else None)


def remove_assignment(uow: UnitOfWork, caller: Caller, end_user: str) -> None:
    """Removes an end user's assignment. Raises: NotFound: there is none. InvalidSpec: the id is malformed."""
    if not uow.repository.catalog.remove_assignment(caller.tenant_id, check_end_user(end_user)):
        raise NotFound("profile of user", end_user)
    _audit_user(uow, caller, "user.unassign", end_user)


def _audit_user(uow: UnitOfWork, caller: Caller, action: str, end_user: str, **details: object) -> None:
    who = user_digest(caller.tenant_id, end_user)
    given = {name: value for name, value in details.items() if value is not None}
    uow.repository.accounts.audit(caller.tenant_id, caller.key_id, action, "user", who, **given)


def _point(
    uow: UnitOfWork, caller: Caller, row: Profile, alias: str, shares: Mapping[int, float], *, force: bool
) -> None:
    """Points an alias and stores the move, unless the targets are the present ones."""
    ready = {number: ready_version(uow, caller, row, number) for number in shares}
    if alias == DEFAULT_ALIAS and not force:
        for number, version in ready.items():
            if version.quality == "weak":
                raise VersionWeak(row.name, number, [str(reason) for reason in version.quality_reasons or ()])
    catalog = uow.repository.catalog
    catalog.set_alias(row, alias, {ready[number].id: share for number, share in shares.items()})
    latest = catalog.standing_moves(row.id, alias, 1)
    if not latest or latest[0].targets != _text_keys(shares):
        catalog.add_move(row, alias, shares, caller.key_id)


def _forced(force: bool) -> dict[str, bool]:
    """Details for the audit log."""
    return {"force": True} if force else {}


def _shares(weights: Mapping[int, float]) -> dict[int, float]:
    """Weights scaled to sum 1."""
    if not 1 <= len(weights) <= MAX_TARGETS:
        raise InvalidSpec("weights", f"must name 1 to {MAX_TARGETS} versions")
    for number, weight in weights.items():
        if not MIN_WEIGHT <= weight <= MAX_WEIGHT:  # false for NaN too
            raise InvalidSpec(f"weights.{number}", f"must be between {MIN_WEIGHT:.6f} and {MAX_WEIGHT:.0f}")
    total = sum(weights.values())
    return {number: weight / total for number, weight in sorted(weights.items())}


def _text_keys(shares: Mapping[int, float]) -> dict[str, float]:
    return {str(number): share for number, share in shares.items()}
