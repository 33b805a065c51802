"""Evaluations of ready versions with another judge or on other queries; the version does not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from profiles.errors import InvalidSpec, NotFound
from profiles.fitting.request import add_job, check_quota
from profiles.models import Evaluation, Job, JobKind
from profiles.service.keys import Caller
from profiles.service.profiles import get_profile, get_version, ready_version
from profiles.uow import UnitOfWork
from telemetry.tracing import Origin

#: Settings of a fit that an evaluation can change; the others are the version's own.
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
        settings: some of `EVALUATION_SETTINGS`, with values that the caller has checked. For a missing one or None,
            the version's own applies.
        max_queued_jobs, origin: as `request_fit`.
    Raises: NotFound, VersionNotReady, InvalidSpec, QuotaExceeded.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    unknown = sorted(set(given) - set(EVALUATION_SETTINGS))
    if unknown:
        raise InvalidSpec(unknown[0], "is not a setting of an evaluation")
    row = get_profile(uow, caller, profile, lock=True)  # a profile that is being deleted must not get new jobs
    version = ready_version(uow, caller, row, number)
    check_quota(uow, caller, max_queued_jobs)
    return add_job(uow, version, origin, JobKind.EVALUATE, given)


def latest_evaluation(
    uow: UnitOfWork, caller: Caller, profile: UUID | str, number: int, judge: str | None = None
) -> Evaluation:
    """The last evaluation of a version, by its fit or by an evaluation job; with a judge, the last one by it.

    Raises: NotFound: profile, version, or such an evaluation.
    """
    version = get_version(uow, caller, profile, number)
    found = uow.repository.fits.latest_evaluation(version.id, judge)
    if found is None:
        by = "" if judge is None else f" by judge {judge}"
        raise NotFound("evaluation", f"of version {number}{by}")
    return found
