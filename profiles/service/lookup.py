"""The hot path: which version a request gets, its directions, and its neighbourhood."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from profiles.errors import NotFound, VersionNotReady
from profiles.models import Profile, ProfileVersion, VersionState
from profiles.repository.fits import SIDES, Neighbourhood
from profiles.service.aliases import DEFAULT_ALIAS, get_assignment
from profiles.service.keys import Caller
from profiles.service.profiles import get_profile, get_version
from profiles.uow import UnitOfWork
from profiles.vectors import Vector

__all__ = [
    "ActiveProfile", "Neighbourhood", "ResolvedVersion", "load_active", "nearest_representations", "pick_version",
    "resolve_for_user",
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class ResolvedVersion:
    """The version that one request gets. Versions are immutable, so `version_id` is a sound cache key."""

    profile_id: UUID
    profile_name: str
    alias: str | None  #: None when the version was named
    version_id: UUID
    number: int
    sha256: str


@dataclass(frozen=True, eq=False)
class ActiveProfile:
    """All that decoding with a version needs, free of the session. L edited layers, D hidden size.

    Args:
        fingerprint: of the base model; it must be the engine's. base_model: its name.
        config: the fit configuration, as the core's `FitConfig.from_dict` takes it.
        layers: L edited layers, ascending. theta_help, theta_harm, theta: (L, D) float32 or None. tau: (L,) or None.
    """

    profile_id: UUID
    profile_name: str
    version_id: UUID
    number: int
    sha256: str
    quality: str
    base_model: str
    fingerprint: str
    config: dict[str, Any]
    layers: tuple[int, ...]
    theta_help: Vector | None
    theta_harm: Vector | None
    theta: Vector | None
    tau: Vector | None


def pick_version(
    uow: UnitOfWork,
    caller: Caller,
    profile: UUID | str,
    *,
    alias: str | None = None,
    version: int | None = None,
    end_user: str | None = None,
) -> ResolvedVersion:
    """The version that a request gets: the one it names, else its alias's, `default` if it names none.

    An alias with several targets sends each end user always to the same one; a request without end user is drawn.

    Raises: NotFound: profile, alias or version. VersionNotReady: pending, failed or archived.
    """
    row = get_profile(uow, caller, profile)
    if version is not None:
        chosen = get_version(uow, caller, row.id, version)
        return _resolved(uow, row, chosen, None)
    name = alias or DEFAULT_ALIAS
    targets = uow.repository.catalog.alias_targets(row.id, name)
    if not targets:
        if name != DEFAULT_ALIAS:
            raise NotFound("alias", f"{name} of profile {row.name}")
        latest = uow.repository.catalog.latest_version(row.id)
        if latest is None:
            raise NotFound("version", f"of profile {row.name}")
        return _resolved(uow, row, latest, name)
    chosen = targets[0][0] if len(targets) == 1 else _draw(targets, row.id, name, end_user)
    return _resolved(uow, row, chosen, name)


def load_active(uow: UnitOfWork, version_id: UUID) -> ActiveProfile:
    """A ready version's content; worth caching by id, for it never changes.

    Raises: NotFound: no ready version of this id. The tenant was checked when the id was resolved.
    """
    version = uow.repository.catalog.version_by_id(version_id)
    if version is None or version.state is not VersionState.READY:
        raise NotFound("version", version_id)
    profile = uow.session.get_one(Profile, version.profile_id)
    model = uow.repository.catalog.base_model(_present(version.base_model_id))
    stored = uow.repository.fits.directions(version_id)
    return ActiveProfile(
        profile_id=profile.id,
        profile_name=profile.name,
        version_id=version.id,
        number=version.number,
        sha256=_present(version.sha256),
        quality=_present(version.quality),
        base_model=_present(model).name,
        fingerprint=_present(model).fingerprint,
        config=_present(version.fit_config),
        layers=stored.layers,
        theta_help=stored.theta_help,
        theta_harm=stored.theta_harm,
        theta=stored.theta,
        tau=stored.tau,
    )


def resolve_for_user(uow: UnitOfWork, caller: Caller, end_user: str) -> ResolvedVersion | None:
    """The version that an end user's assignment means; None without one. Raises: VersionNotReady."""
    try:
        found = get_assignment(uow, caller, end_user)
    except NotFound:
        return None
    return pick_version(
        uow,
        caller,
        found.profile.id,
        alias=found.assignment.alias,
        version=found.version,
        end_user=end_user,
    )


def nearest_representations(
    uow: UnitOfWork, version_id: UUID, embedding: Vector, k: int, sides: Sequence[str] = SIDES
) -> Neighbourhood:
    """The K fit queries of a version nearest to a query's embedding, with their representations.

    Args:
        embedding: (D,) float32, unit length, from the version's own query encoder.
        sides: which of "help", "harm", "plain" to read; a method needs two of the three, which saves a third.
    """
    return uow.repository.fits.nearest(version_id, embedding, k, sides)


def _resolved(uow: UnitOfWork, row: Profile, version: ProfileVersion, alias: str | None) -> ResolvedVersion:
    if version.state is not VersionState.READY:
        job = uow.repository.jobs.of_version(version.id)
        raise VersionNotReady(row.name, version.number, version.state.value, job.id if job else None)
    return ResolvedVersion(row.id, row.name, alias, version.id, version.number, _present(version.sha256))


def _draw(
    targets: Sequence[tuple[ProfileVersion, float]], profile_id: UUID, alias: str, end_user: str | None
) -> ProfileVersion:
    """One target by weight; the end user's hash decides, so raising a canary's weight moves users one way only."""
    if end_user is None:
        point = random.random()
    else:
        digest = hashlib.sha256(f"{profile_id}/{alias}/{end_user}".encode("utf-8", "surrogatepass")).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
    point *= sum(weight for _, weight in targets)
    for version, weight in targets:
        point -= weight
        if point < 0:
            return version
    return targets[-1][0]


def _present(value: T | None) -> T:
    """A column that `ready_is_complete` guarantees for a ready version."""
    if value is None:
        raise NotFound("version", "content")
    return value
