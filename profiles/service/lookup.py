"""The hot path: which version a request gets, its directions, and its neighbourhood."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from profiles.errors import NotFound, VersionNotReady
from profiles.models import Profile, VersionState
from profiles.repository.fits import SIDES, Neighbourhood
from profiles.repository.routes import Route, Target
from profiles.service.aliases import DEFAULT_ALIAS
from profiles.service.keys import Caller
from profiles.service.profiles import profile_ref
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
    ref = profile_ref(profile)
    routes = uow.repository.routes
    if version is not None:
        # What no version can be called is no question for the database.
        route = routes.by_number(caller.tenant_id, ref, version if 0 < version < 2**31 else 0)
    else:
        route = routes.by_alias(caller.tenant_id, ref, alias or DEFAULT_ALIAS)
    if route is None:
        raise NotFound("profile", profile)
    if version is not None and not route.targets:
        raise NotFound("version", f"{version} of profile {route.profile_name}")
    return _resolved(uow, route, end_user)


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
    if "\x00" in end_user:
        return None
    route = uow.repository.routes.of_user(caller.tenant_id, end_user, DEFAULT_ALIAS)
    return None if route is None else _resolved(uow, route, end_user)


def nearest_representations(
    uow: UnitOfWork, version_id: UUID, embedding: Vector, k: int, sides: Sequence[str] = SIDES
) -> Neighbourhood:
    """The K fit queries of a version nearest to a query's embedding, with their representations.

    Args:
        embedding: (D,) float32, unit length, from the version's own query encoder.
        sides: which of "help", "harm", "plain" to read; a method needs two of the three, which saves a third.
    """
    return uow.repository.fits.nearest(version_id, embedding, k, sides)


def _resolved(uow: UnitOfWork, route: Route, end_user: str | None) -> ResolvedVersion:
    chosen = _draw(route, end_user) if route.targets else _latest(uow, route)
    if chosen.state is not VersionState.READY:
        job = uow.repository.jobs.of_version(chosen.version_id)
        raise VersionNotReady(route.profile_name, chosen.number, chosen.state.value, job.id if job else None)
    return ResolvedVersion(
        route.profile_id, route.profile_name, route.alias, chosen.version_id, chosen.number, _present(chosen.sha256)
    )


def _latest(uow: UnitOfWork, route: Route) -> Target:
    """Where a default leads that was never set: to the version whose state says why. Raises: NotFound."""
    if route.alias != DEFAULT_ALIAS:
        raise NotFound("alias", f"{route.alias} of profile {route.profile_name}")
    latest = uow.repository.catalog.latest_version(route.profile_id)
    if latest is None:
        raise NotFound("version", f"of profile {route.profile_name}")
    return Target(latest.id, latest.number, latest.state, latest.sha256, 1.0)


def _draw(route: Route, end_user: str | None) -> Target:
    """One target by weight; the end user's hash decides, so raising a canary's weight moves users one way only."""
    targets = route.targets
    if len(targets) == 1:
        return targets[0]
    if end_user is None:
        point = random.random()
    else:
        name = f"{route.profile_id}/{route.alias}/{end_user}"
        point = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    point *= sum(target.weight for target in targets)
    for target in targets:
        point -= target.weight
        if point < 0:
            return target
    return targets[-1]


def _present(value: T | None) -> T:
    """A column that `ready_is_complete` guarantees for a ready version."""
    if value is None:
        raise NotFound("version", "content")
    return value
