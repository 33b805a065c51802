"""Requests for fits: profile, version, job and message in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from profiles.errors import BaseModelNotServed, ModelConflict, NameTaken, QuotaExceeded
from profiles.models import BaseModelRow, Job, JobKind, Profile, ProfileVersion, VersionState
from profiles.service.keys import Caller, lock_tenant
from profiles.service.profiles import get_profile
from profiles.spec import DESCRIPTION_LIMIT, check_layers, check_name, check_text, normal_spec
from profiles.uow import UnitOfWork
from telemetry.tracing import NO_ORIGIN, Origin

#: Seconds after which a caller over quota may try again; about the duration of a fit.
_RETRY_AFTER_S = 15


@dataclass(frozen=True)
class FitRequest:
    """The new version and its job, with their profile."""

    profile: Profile
    version: ProfileVersion
    job: Job


def request_fit(
    uow: UnitOfWork,
    caller: Caller,
    spec: Mapping[str, Any],
    *,
    name: str | None = None,
    description: str | None = None,
    profile: UUID | str | None = None,
    base_model: str | None = None,
    promote: bool = False,
    max_queued_jobs: int = 100,
    origin: Origin | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> FitRequest:
    """A pending version with its queued job, of a new profile (`name`) or of an existing one (`profile`).

    Args:
        spec: persona, queries, pairs, fit, as `spec.normal_spec` takes them; the caller has checked `fit` with the
            core's `FitConfig`. For an existing profile, the latest version supplies missing parts.
        base_model: name; None: the model that a process loaded last, or the worker's if there is none.
        promote: make the version the default if it is good (a profile's first good version always becomes it).
        max_queued_jobs: limit for a tenant without its own.
        origin: the API request, for the worker's logs and traces.
        check: checks the complete spec and raises any error. It may be slow (a tokenizer), because it runs before the
            tenant is locked.
    Raises: InvalidSpec, NameTaken, NotFound, BaseModelNotServed, ModelConflict, QuotaExceeded.
    """
    if profile is None:
        check_name("name", name or "")
        if description is not None:
            check_text("description", description, DESCRIPTION_LIMIT)
        row, parent = None, None
    else:
        row = get_profile(uow, caller, profile, lock=True)
        parent = uow.repository.catalog.latest_version(row.id)
    model = _base_model(uow, row, base_model)
    stored = normal_spec(spec, parent.spec if parent else None)
    if model is not None:
        check_layers(stored["fit"], model.n_layers, model.name)
    if check is not None:
        check(stored)
    check_quota(uow, caller, max_queued_jobs)
    row = row or _add_profile(uow, caller, name or "", description, model)
    version = ProfileVersion(
        tenant_id=caller.tenant_id,
        profile_id=row.id,
        state=VersionState.PENDING,
        parent_id=parent.id if parent else None,
        base_model_id=model.id if model else None,
        spec=stored,
        promote=promote,
    )
    uow.repository.catalog.add_version(version)
    job = add_job(uow, version, origin)
    uow.repository.accounts.audit(
        caller.tenant_id, caller.key_id, "version.create", "profile", row.id, version=version.number
    )
    uow.session.refresh(row)
    uow.session.refresh(version)
    return FitRequest(row, version, job)


def _add_profile(
    uow: UnitOfWork, caller: Caller, name: str, description: str | None, model: BaseModelRow | None
) -> Profile:
    """Raises: NameTaken."""
    row = uow.repository.catalog.add_profile(caller.tenant_id, name, description, model.id if model else None)
    if row is None:
        raise NameTaken("profile", name)
    uow.repository.accounts.audit(caller.tenant_id, caller.key_id, "profile.create", "profile", row.id)
    return row


def add_job(
    uow: UnitOfWork,
    version: ProfileVersion,
    origin: Origin | None,
    kind: JobKind = JobKind.FIT,
    request: Mapping[str, Any] | None = None,
) -> Job:
    """A queued job on a version. request: settings of an evaluation."""
    origin = origin or NO_ORIGIN
    job = Job(
        tenant_id=version.tenant_id,
        profile_id=version.profile_id,
        version_id=version.id,
        kind=kind,
        request=request,
        request_id=origin.request_id,
        traceparent=origin.traceparent,
    )
    uow.repository.jobs.add(job)
    uow.session.refresh(job)
    return job


def _base_model(uow: UnitOfWork, profile: Profile | None, name: str | None) -> BaseModelRow | None:
    """The base model of a fit. Raises: BaseModelNotServed: no process has loaded one of this name. ModelConflict."""
    catalog = uow.repository.catalog
    if profile is not None and profile.base_model_id is not None:
        model = catalog.base_model(profile.base_model_id)
        if model is not None and name is not None and name != model.name:
            raise ModelConflict(model.name, name)
        return model
    model = catalog.base_model_by_name(name)
    if model is None and name is not None:
        served = catalog.base_model_by_name(None)
        raise BaseModelNotServed(served.name if served else None, name)
    return model


def check_quota(uow: UnitOfWork, caller: Caller, default: int) -> None:
    """Checks the number of open jobs under the tenant's lock, because simultaneous requests could exceed the limit."""
    tenant = lock_tenant(uow, caller.tenant_id)
    limit = tenant.max_queued_jobs or default
    used = uow.repository.jobs.open_count(caller.tenant_id)
    if used >= limit:
        raise QuotaExceeded(used, limit, _RETRY_AFTER_S)
