"""The end of a successful job: a version becomes ready, or a ready one gets another evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import func

from profiles.errors import Conflict, JobCancelled
from profiles.fitting.claims import Claim, fenced, stop_if_cancelled
from profiles.models import Evaluation, Job, JobStatus, ProfileVersion, VersionState
from profiles.repository.fits import StoredEdit
from profiles.service.aliases import DEFAULT_ALIAS, point_default
from profiles.text import json_safe
from profiles.uow import UnitOfWork


@dataclass(frozen=True)
class Verdict:
    """A proof of a version, as it is stored.

    Args:
        judge: name of the judge. quality: "good", or "weak" with reasons.
        report, choice: as the core makes them; only a fit has a choice.
    """

    judge: str
    quality: str
    reasons: tuple[str, ...]
    report: Mapping[str, Any]
    choice: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class FittedVersion:
    """The result of a fit, without the texts and vectors that the job has already stored.

    Args:
        config: complete fit configuration. method: method of the fit. layers: L edited layers, ascending.
        edits: one per group; none for a prefix alone. prefix, steps, positions, lookup: as in `ProfileVersion`.
        looked_up: number of queries with embeddings (and, for "neighbors", representations).
        embedding_layer: None if another model makes the query embeddings.
        dropped: position of an unused query → reason.
    """

    config: Mapping[str, Any]
    method: str
    layers: tuple[int, ...]
    edits: Sequence[StoredEdit]
    diagnostics: Mapping[str, Any]
    sha256: str
    verdict: Verdict
    prefix: Mapping[str, Any] | None = None
    steps: int | None = None
    positions: str = "answer"
    lookup: Literal["none", "groups", "neighbors"] = "none"
    looked_up: int = 0
    embedding_layer: int | None = None
    dropped: Mapping[int, str] = field(default_factory=dict)


def publish(uow: UnitOfWork, claim: Claim, fitted: FittedVersion) -> None:
    """Makes the version ready and immutable, stores its evaluation, and ends the job.

    A good version becomes the profile's default if there is none or the request said so. A weak one does not.

    Raises: LeaseLost. JobCancelled: also if the profile was deleted. Conflict: embeddings or rows are missing.
    """
    catalog = uow.repository.catalog
    # The profile's row first, as in `delete_profile`: another order could deadlock.
    profile = catalog.profile(claim.tenant_id, claim.profile_id, lock=True)
    with fenced(uow, claim) as job:
        stop_if_cancelled(job)
        version = catalog.version_by_id(claim.version_id)
        if profile is None or version is None or version.state is not VersionState.PENDING:
            raise JobCancelled(claim.job_id)
        _check_complete(uow, claim, fitted)
        for position, reason in fitted.dropped.items():
            uow.repository.fits.drop_pair(claim.tenant_id, claim.version_id, position, reason)
        uow.repository.fits.write_edits(claim.tenant_id, claim.version_id, fitted.layers, fitted.edits)
        _fill(version, fitted)
        uow.session.flush()
        good = fitted.verdict.quality == "good"
        if good and (version.promote or not catalog.alias_targets(profile.id, DEFAULT_ALIAS)):
            point_default(uow, profile, version)
        _conclude(uow, claim, job, fitted.verdict)


def publish_evaluation(uow: UnitOfWork, claim: Claim, verdict: Verdict) -> None:
    """Stores an evaluation of a ready version and ends the job; the version does not change.

    Raises: LeaseLost. JobCancelled: also if the version was archived.
    """
    version = uow.repository.catalog.version_by_id(claim.version_id)
    with fenced(uow, claim) as job:
        stop_if_cancelled(job)
        if version is None or version.state is not VersionState.READY:
            raise JobCancelled(claim.job_id)
        _conclude(uow, claim, job, verdict)


def _check_complete(uow: UnitOfWork, claim: Claim, fitted: FittedVersion) -> None:
    if fitted.lookup == "none":
        return
    layers = fitted.layers if fitted.lookup == "neighbors" else None
    complete = uow.repository.fits.count_complete(claim.version_id, layers)
    if complete != fitted.looked_up or not complete:
        raise Conflict(f"{complete} of {fitted.looked_up} fit queries have what requests look up")


def _fill(version: ProfileVersion, fitted: FittedVersion) -> None:
    version.state = VersionState.READY
    version.fit_config = dict(fitted.config)
    version.method = fitted.method
    version.layers = list(fitted.layers)
    version.prefix = None if fitted.prefix is None else json_safe(dict(fitted.prefix))
    version.steps = fitted.steps
    version.positions = fitted.positions
    version.lookup = fitted.lookup
    version.embedding_layer = fitted.embedding_layer
    version.diagnostics = json_safe(dict(fitted.diagnostics))
    version.quality = fitted.verdict.quality
    version.quality_reasons = list(fitted.verdict.reasons)
    version.sha256 = fitted.sha256
    version.ready_at = func.now()


def _conclude(uow: UnitOfWork, claim: Claim, job: Job, verdict: Verdict) -> None:
    """Stores the evaluation and ends the job as succeeded."""
    uow.repository.fits.add_evaluation(
        Evaluation(
            tenant_id=claim.tenant_id,
            version_id=claim.version_id,
            job_id=claim.job_id,
            judge=verdict.judge,
            quality=verdict.quality,
            reasons=json_safe(list(verdict.reasons)),
            report=json_safe(dict(verdict.report)),
            choice=None if verdict.choice is None else json_safe(dict(verdict.choice)),
        )
    )
    uow.repository.jobs.finish(job, JobStatus.SUCCEEDED)
