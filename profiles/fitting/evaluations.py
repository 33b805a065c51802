"""Proving a ready version again, with another judge or on other queries; the version itself stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from profiles.errors import InvalidSpec, NotFound, VersionNotReady
from profiles.fitting.request import check_quota
from profiles.models import Evaluation, Job, JobKind, VersionState
from profiles.service.keys import Caller
from profiles.service.profiles import get_profile, get_version
from profiles.uow import UnitOfWork
from telemetry.tracing import NO_ORIGIN, Origin

#: Of the fit's settings, those that an evaluation may set anew; the others are the version's own.
EVALUATION_SETTINGS = ("judge", "judge_fallback", "held_out_queries", "answer_tokens", "seed")


def request_evaluation(
    uow: UnitOfWork,
    caller: Caller,
    profile: UUID | str,
    number: int,
    settings: Mapping[str, Any],
    *,
    max_queued_jobs: int = 100,
    origin: Origin | None = None,
) -> Job:
    """A queued job that evaluates a ready version.

    Args:
        settings: of `EVALUATION_SETTINGS`, as the core's `FitConfig` takes them; the caller of this function has
            checked them. One that is None, or left out, is the version's own.
        max_queued_jobs: as `request_fit`. origin: the request that asks, for the worker's logs and traces.
    Raises: NotFound, VersionNotReady, InvalidSpec, QuotaExceeded.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    unknown = sorted(set(given) - set(EVALUATION_SETTINGS))
    if unknown:
        raise InvalidSpec(unknown[0], "is not a setting of an evaluation")
    row = get_profile(uow, caller, profile, lock=True)  # so that a profile being deleted gets no new jobs
    version = get_version(uow, caller, row.id, number)
    if version.state is not VersionState.READY:
        fit = uow.repository.jobs.of_version(version.id)
        raise VersionNotReady(row.name, number, version.state.value, fit.id if fit else None)
    check_quota(uow, caller, max_queued_jobs)
    origin = origin or NO_ORIGIN
    job = Job(
        tenant_id=caller.tenant_id,
        profile_id=row.id,
        version_id=version.id,
        kind=JobKind.EVALUATE,
        request=given,
        request_id=origin.request_id,
        traceparent=origin.traceparent,
    )
    uow.repository.jobs.add(job)
    uow.session.refresh(job)
    return job


def latest_evaluation(
    uow: UnitOfWork, caller: Caller, profile: UUID | str, number: int, judge: str | None = None
) -> Evaluation:
    """The last evaluation of a version, the fit's own or a later one; with a judge, the last one by it.

    Raises: NotFound: profile, version, or such an evaluation.
    """
    version = get_version(uow, caller, profile, number)
    found = uow.repository.fits.latest_evaluation(version.id, judge)
    if found is None:
        by = "" if judge is None else f" by judge {judge}"
        raise NotFound("evaluation", f"of version {number}{by}")
    return found
