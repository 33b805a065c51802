"""The reads of every generation request: its version, the edits or the prefix, and the neighbourhood."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast
from uuid import UUID

from profiles.errors import NoDefaultVersion, NotFound, VersionNotReady
from profiles.models import Profile, VersionState
from profiles.repository.fits import SIDES, NearestGroups, Neighbourhood, StoredEdit
from profiles.repository.resolution import Route, Target
from profiles.service.aliases import DEFAULT_ALIAS
from profiles.service.keys import Caller
from profiles.service.profiles import not_ready
from profiles.spec import check_end_user, profile_ref
from profiles.uow import UnitOfWork
from profiles.vectors import Vector

__all__ = [
    "ActiveProfile", "NearestGroups", "Neighbourhood", "ResolvedVersion", "StoredEdit", "Unserved", "load_active",
    "nearest_groups", "nearest_representations", "pick_version", "resolve_for_user",
]  # fmt: skip

T = TypeVar("T")

Lookup = Literal["none", "groups", "neighbors"]
Positions = Literal["answer", "all"]


@dataclass(frozen=True)
class ResolvedVersion:
    """The version of a request. Versions are immutable, so `version_id` is a valid cache key."""

    profile_id: UUID
    profile_name: str
    alias: str | None  #: None if the request names a version
    version_id: UUID
    number: int
    sha256: str


@dataclass(frozen=True)
class Unserved:
    """A profile without a default version: the bare model answers its end users, and the response gives the reason."""

    profile_id: UUID
    profile_name: str
    reason: Literal["no_default_version"] = "no_default_version"


@dataclass(frozen=True, eq=False)
class ActiveProfile:
    """The content of a version for decoding, usable without a session.

    Args:
        fingerprint: of the base model; the engine must have the same. base_model: its name.
        config: the fit configuration, for the core's `FitConfig.from_dict`.
        method: method of the fit. layers: L edited layers, ascending.
        edits: one per group of fit queries, at strength 1; none for a prefix alone.
        steps: number of edited positions, from the last prompt token on; None: no end. positions: "answer" or "all".
        prefix: {"system": text or None, "examples": [[user, assistant], …]}, put before the conversation; or None.
        lookup: at request time: "none", "groups" (a vote for a group) or "neighbors" (rows for an edit of its own).
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
    method: str
    layers: tuple[int, ...]
    edits: tuple[StoredEdit, ...]
    steps: int | None
    positions: Positions
    prefix: dict[str, Any] | None
    lookup: Lookup


def pick_version(
    uow: UnitOfWork,
    caller: Caller,
    profile: UUID | str,
    *,
    alias: str | None = None,
    version: int | None = None,
    end_user: str | None = None,
) -> ResolvedVersion:
    """The version of a request: the named one, else that of the alias, which is `default` if not named.

    An alias with several targets gives each end user always the same one, and a request without end user a random one.

    Raises: NotFound: profile, alias or version. VersionNotReady: pending, failed or archived. NoDefaultVersion: the
        request names no version, and the profile has no default version.
    """
    ref = profile_ref(profile)
    routes = uow.repository.routes
    if version is not None:
        # The database cannot compare numbers outside of its integers.
        route = routes.by_number(caller.tenant_id, ref, version if 0 < version < 2**31 else 0)
    else:
        route = routes.by_alias(caller.tenant_id, ref, alias or DEFAULT_ALIAS)
    if route is None or caller.profile_id not in (None, route.profile_id):
        raise NotFound("profile", profile)
    if version is not None and not route.targets:
        raise NotFound("version", f"{version} of profile {route.profile_name}")
    return _resolved(uow, route, end_user)


def load_active(uow: UnitOfWork, version_id: UUID) -> ActiveProfile:
    """A ready version's content, which never changes and can be cached by id.

    Raises: NotFound: no ready version has this id. `pick_version` has checked the tenant.
    """
    version = uow.repository.catalog.version_by_id(version_id)
    if version is None or version.state is not VersionState.READY:
        raise NotFound("version", version_id)
    profile = uow.session.get_one(Profile, version.profile_id)
    model = uow.repository.catalog.base_model(_present(version.base_model_id))
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
        method=_present(version.method),
        layers=tuple(_present(version.layers)),
        edits=uow.repository.fits.edits(version_id),
        steps=version.steps,
        positions=cast("Positions", version.positions),
        prefix=version.prefix,
        lookup=cast("Lookup", version.lookup),
    )


def resolve_for_user(uow: UnitOfWork, caller: Caller, end_user: str) -> ResolvedVersion | Unserved | None:
    """The version of an end user's assignment; None without an assignment.

    Raises: VersionNotReady. InvalidSpec: the id is malformed.
    Returns: `Unserved` if the profile has no default version: the end user gets the bare model.
    """
    route = uow.repository.routes.of_user(caller.tenant_id, check_end_user(end_user), DEFAULT_ALIAS)
    if route is None:
        return None
    if caller.profile_id not in (None, route.profile_id):
        raise NotFound("profile of user", end_user)
    try:
        return _resolved(uow, route, end_user)
    except NoDefaultVersion:
        return Unserved(route.profile_id, route.profile_name)
    except VersionNotReady:
        if route.targets:
            raise
        return Unserved(route.profile_id, route.profile_name)  # the first fit has not ended, or has failed


def nearest_representations(
    uow: UnitOfWork, version_id: UUID, embedding: Vector, k: int, sides: Sequence[str] = SIDES
) -> Neighbourhood:
    """The K fit queries of a version nearest to a query's embedding, with their representations.

    Args:
        embedding: (D,) float32, unit length, from the version's own query encoder.
        sides: "help", "harm" or both.
    """
    return uow.repository.fits.nearest(version_id, embedding, k, sides)


def nearest_groups(uow: UnitOfWork, version_id: UUID, embedding: Vector, k: int) -> NearestGroups:
    """The K fit queries of a version nearest to a query's embedding, with the groups that they vote for."""
    return uow.repository.fits.nearest_groups(version_id, embedding, k)


def _resolved(uow: UnitOfWork, route: Route, end_user: str | None) -> ResolvedVersion:
    chosen = _draw(route, end_user) if route.targets else _latest(uow, route)
    if chosen.state is not VersionState.READY:
        raise not_ready(uow, route.profile_name, chosen.number, chosen.version_id, chosen.state)
    return ResolvedVersion(
        route.profile_id, route.profile_name, route.alias, chosen.version_id, chosen.number, _present(chosen.sha256)
    )


def _latest(uow: UnitOfWork, route: Route) -> Target:
    """The latest version of a profile whose default was never set; its state is the reason.

    Raises: NotFound: another alias, or no version. NoDefaultVersion: a version is ready, but is not the default.
    """
    if route.alias != DEFAULT_ALIAS:
        raise NotFound("alias", f"{route.alias} of profile {route.profile_name}")
    ready = uow.repository.catalog.latest_ready(route.profile_id)
    if ready is not None:
        version_id, number, reasons = ready
        job = uow.repository.jobs.of_version(version_id)
        raise NoDefaultVersion(route.profile_name, number, [str(reason) for reason in reasons], job.id if job else None)
    latest = uow.repository.catalog.latest_version(route.profile_id)
    if latest is None:
        raise NotFound("version", f"of profile {route.profile_name}")
    return Target(latest.id, latest.number, latest.state, latest.sha256, 1.0)


def _draw(route: Route, end_user: str | None) -> Target:
    """One target by weight and the end user's hash, so that a higher weight of a canary only adds users to it."""
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
    """The value of a column that the constraint `ready_is_complete` guarantees for a ready version."""
    if value is None:
        raise NotFound("version", "content")
    return value
