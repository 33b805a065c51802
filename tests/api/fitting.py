"""Fits a profile without a worker: what a worker would publish, written straight into the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import func

from alignez_core.engines.base import Engine
from alignez_core.fit import FittedProfile, fit_profile
from alignez_core.fit_config import FitConfig, FitQuery, FitSpec
from alignez_core.prompts import Persona
from profiles.models import Job, JobStatus, Profile, ProfileVersion, QuerySource, VersionState
from profiles.repository.fits import StoredDirections
from profiles.service.aliases import point_default
from profiles.uow import SessionFactory, UnitOfWork

QUERIES = [f"What is a good way to {what}?" for what in ("cook", "sleep", "run", "read", "save", "rest", "sing", "sew")]


def finish_fit(sessions: SessionFactory, engine: Engine, version_id: UUID) -> FittedProfile:
    """Runs the fit of a pending version and makes it ready, the profile's default if it is the first."""
    with UnitOfWork.open(sessions) as uow:
        version = uow.session.get_one(ProfileVersion, version_id)
        fitted = fit_profile(engine, _spec(version.spec))
        _publish(uow, version, fitted)
    return fitted


def _spec(stored: Mapping[str, Any]) -> FitSpec:
    persona = {k: v for k, v in (stored["persona"] or {}).items() if v is not None}
    queries = stored["queries"] or [{"text": text, "preferred": None, "dispreferred": None} for text in QUERIES]
    settings = {"neighbors": 3, "responses": 0, **stored["fit"]}
    return FitSpec(
        Persona(**persona),
        tuple(FitQuery(q["text"], q["preferred"], q["dispreferred"]) for q in queries),
        (),
        FitConfig.from_dict(settings),
    )


def _publish(uow: UnitOfWork, version: ProfileVersion, fitted: FittedProfile) -> None:
    fits = uow.repository.fits
    tenant = {"tenant_id": version.tenant_id, "version_id": version.id}
    fits.add_queries(
        [
            {**tenant, "position": i, "text": pair.query, "source": QuerySource.GIVEN}
            for i, pair in enumerate(fitted.pairs)
        ]
    )
    ids = fits.query_ids(version.id, range(len(fitted.pairs)))
    order = [ids[i] for i in range(len(fitted.pairs))]
    fits.upsert_pairs(
        [
            {**tenant, "query_id": order[i], "help_characteristics": pair.help_characteristics}
            for i, pair in enumerate(fitted.pairs)
        ],
        ["help_characteristics"],
    )
    fits.write_embeddings(version.id, range(len(order)), fitted.embeddings.numpy())
    sides = {"help": fitted.help.numpy(), "harm": fitted.harm.numpy(), "plain": fitted.plain.numpy()}
    fits.write_representations(version.tenant_id, version.id, order, fitted.layers, sides)
    directions = StoredDirections(
        fitted.layers,
        fitted.theta_help.numpy(),
        fitted.theta_harm.numpy(),
        fitted.theta.numpy(),
        fitted.tau.numpy(),
    )
    fits.write_directions(version.tenant_id, version.id, directions)
    version.fit_config = fitted.spec.config.to_dict()
    version.layers = list(fitted.layers)
    version.diagnostics = fitted.diagnostics
    version.quality = fitted.quality
    version.quality_reasons = list(fitted.quality_reasons)
    version.sha256 = fitted.sha256
    version.ready_at = func.now()
    version.state = VersionState.READY
    uow.session.flush()
    job = uow.repository.jobs.of_version(version.id)
    assert job is not None
    job.status = JobStatus.RUNNING
    job.lease_until = func.now()
    uow.session.flush()
    uow.repository.jobs.set_progress(job, "representations", len(order), len(order))
    uow.repository.jobs.finish(job, JobStatus.SUCCEEDED)
    profile = uow.session.get_one(Profile, version.profile_id)
    if version.number == 1 or version.promote:
        point_default(uow, profile, version)


def end_job(sessions: SessionFactory, job_id: UUID, status: JobStatus, code: str) -> None:
    """Ends a job that did not succeed."""
    with UnitOfWork.open(sessions) as uow:
        uow.repository.jobs.finish(uow.session.get_one(Job, job_id), status, code, "as the test wants it")
