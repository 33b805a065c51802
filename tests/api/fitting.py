"""Makes a version ready without a worker: a small made-up fit, written straight into the tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal
from uuid import UUID

import torch
from sqlalchemy import func

from alignez_core import embeddings
from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine
from alignez_core.fit import FittedProfile
from alignez_core.methods.directions import fit_directions
from alignez_core.prompts import Prefix, persona_prompt, persona_text
from alignez_core.readings import Readings
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import FitSpec
from alignez_core.spec.samples import Sample, make_samples, of_split
from profiles.models import (
    Evaluation,
    Job,
    JobStatus,
    Profile,
    ProfileVersion,
    VersionState,
)
from profiles.service import StoredEdit
from profiles.service.aliases import point_default
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.reports import make_report

QUERIES = [f"What is a good way to {what}?" for what in ("cook", "sleep", "run", "read", "save", "rest", "sing", "sew")]
LAYERS = (1, 3)
WEAK = "net win over the bare model is +0.03 on 8 held-out queries, +0.20 is needed"

Quality = Literal["good", "weak"]


def finish_fit(
    sessions: SessionFactory, engine: Engine, version_id: UUID, quality: Quality = "good", judge: str = "self"
) -> FittedProfile:
    """Runs a made-up fit of a pending version and makes it ready; a good one as a worker would make it the default."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        version = uow.session.get_one(ProfileVersion, version_id)
        fitted = make_fit(engine, version.spec, quality)
        _publish(uow, version, fitted, judge)
    return fitted


def make_fit(engine: Engine, stored: Mapping[str, Any], quality: Quality = "good") -> FittedProfile:
    """A fit of a stored spec whose numbers follow from the spec alone.

    `alignez` looks neighbours up, queries of several personas make groups, `prompt` is a prefix, `urial` a prefix with
    examples, and everything else one edit.
    """
    spec = _spec(stored)
    samples = make_samples(spec)
    fit = of_split(samples, "fit")
    method = "distill" if spec.config.method == "auto" else spec.config.method
    config = replace(spec.config, method=method, prompt_margin=None, neighbors=min(spec.config.neighbors, len(fit)))
    edits, rows, prefix = _made(engine, config, fit, json.dumps(dict(stored), sort_keys=True))
    looks_up = rows is not None or len(edits) > 1
    found = torch.zeros(0, engine.info.hidden_size)
    if looks_up:
        found = embeddings.make_encoder(config.query_encoder, engine).encode([s.query for s in fit])
    return FittedProfile(
        spec=spec,
        config=config,
        fingerprint=engine.info.fingerprint,
        samples=tuple(samples),
        method=method,
        edits=edits,
        prefix=prefix,
        embeddings=found,
        neighbor_rows=rows,
        report=make_report(method),
        choice={"chosen": "the made-up one", "reason": "there is no other", "trace": []},
        diagnostics={"layers": list(LAYERS), "splits": {"fit": len(fit)}},
        quality=quality,
        quality_reasons=() if quality == "good" else (WEAK,),
    )


def evaluate(
    sessions: SessionFactory, job_id: UUID, quality: Quality = "good", judge: str = "self", **report: Any
) -> None:
    """Ends an evaluation's job as a worker would."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        job = uow.session.get_one(Job, job_id)
        reasons = [] if quality == "good" else [WEAK]
        uow.repository.fits.add_evaluation(_evaluation(job, quality, reasons, {**make_report(judge=judge), **report}))
        _succeed(uow, job)


def end_job(sessions: SessionFactory, job_id: UUID, status: JobStatus, code: str) -> None:
    """Ends a job that did not succeed."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        uow.repository.jobs.finish(uow.session.get_one(Job, job_id), status, code, "as the test wants it")


def _spec(stored: Mapping[str, Any]) -> FitSpec:
    settings = {"neighbors": 3, "tune_queries": 0, "held_out_queries": 0, **stored["fit"]}
    return FitSpec.from_dict({**stored, "fit": settings}, QUERIES)


def _made(
    engine: Engine, config: FitConfig, fit: Sequence[Sample], key: str
) -> tuple[tuple[EditPlan, ...], Readings | None, Prefix | None]:
    if config.method in ("prompt", "urial"):
        examples = ((QUERIES[0], "Yay, boil it!"),) if config.method == "urial" else ()
        return (), None, Prefix(persona_text(fit[0].persona, "help"), examples)
    if config.method == "alignez":
        form, count = engine.prompt_format, len(fit)
        prompts = [persona_prompt(form, s.query, s.persona, side) for side in ("help", "harm") for s in fit]
        both = engine.represent(prompts)
        layers = tuple(range(engine.info.n_layers))
        rows = Readings(tuple(s.index for s in fit), layers, both[:count], both[count:]).at(LAYERS)
        found = fit_directions(rows.help, rows.harm)
        rule, steps = config.edit_rule or "sequential", config.effective_steps
        plan = EditPlan.alignez(LAYERS, found.theta_harm, found.theta_help, 1.0, rule, steps=steps)
        return (plan,), rows if config.conditional is not False else None, None
    random = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big"))
    shape = (len(LAYERS), 2, engine.info.hidden_size)
    groups = 1 + max(s.group for s in fit)
    edits = tuple(
        EditPlan.low_rank(
            LAYERS, torch.randn(shape, generator=random), torch.randn(shape, generator=random),
            torch.randn(shape[:2], generator=random), steps=config.effective_steps,
        )
        for _ in range(groups)
    )  # fmt: skip
    return edits, None, None


def _publish(uow: UnitOfWork, version: ProfileVersion, fitted: FittedProfile, judge: str) -> None:
    fits = uow.repository.fits
    tenant = {"tenant_id": version.tenant_id, "version_id": version.id}
    fits.add_queries([{**tenant, **_query_row(sample)} for sample in fitted.samples])
    ids = fits.query_ids(version.id, range(len(fitted.samples)))
    fits.upsert_pairs(
        [
            {
                **tenant,
                "query_id": ids[s.index],
                "help_response": f"Yay, {s.query}",
                "harm_response": f"Alas, {s.query}",
            }
            for s in fitted.fit_samples
        ],
        ["help_response", "harm_response"],
    )
    positions = [s.index for s in fitted.fit_samples]
    if len(fitted.embeddings):
        fits.write_embeddings(version.id, positions, fitted.embeddings.numpy())
    if fitted.neighbor_rows is not None:
        sides = {"help": fitted.neighbor_rows.help.numpy(), "harm": fitted.neighbor_rows.harm.numpy()}
        order = [ids[position] for position in positions]
        fits.write_representations(version.tenant_id, version.id, order, fitted.layers, sides)
    edits = [StoredEdit(plan.U.numpy(), plan.V.numpy(), plan.c.numpy()) for plan in fitted.edits]
    fits.write_edits(version.tenant_id, version.id, fitted.layers, edits)
    version.fit_config = fitted.config.to_dict()
    version.method = fitted.method
    version.layers = list(fitted.layers)
    version.steps = fitted.edits[0].steps if fitted.edits else None
    version.lookup = "neighbors" if fitted.neighbor_rows is not None else "groups" if len(fitted.edits) > 1 else "none"
    version.prefix = None if fitted.prefix is None else fitted.prefix.to_dict()
    version.diagnostics = fitted.diagnostics
    version.quality = fitted.quality
    version.quality_reasons = list(fitted.quality_reasons)
    version.sha256 = fitted.sha256
    version.ready_at = func.now()
    version.state = VersionState.READY
    uow.session.flush()
    job = uow.repository.jobs.of_version(version.id)
    assert job is not None
    report = {**fitted.report, "judge": judge}
    fits.add_evaluation(_evaluation(job, fitted.quality, fitted.quality_reasons, report, fitted.choice))
    _succeed(uow, job, len(positions))
    profile = uow.session.get_one(Profile, version.profile_id)
    standing = uow.repository.catalog.aliases([profile.id])[profile.id]
    if fitted.quality == "good" and (version.promote or "default" not in standing):
        point_default(uow, profile, version)


def _query_row(sample: Sample) -> dict[str, Any]:
    return {
        "position": sample.index,
        "text": sample.query,
        "source": sample.origin,
        "split": sample.split,
        "persona_group": sample.group,
    }


def _evaluation(
    job: Job, quality: Quality, reasons: Sequence[str], report: dict[str, Any], choice: dict[str, Any] | None = None
) -> Evaluation:
    return Evaluation(
        tenant_id=job.tenant_id,
        version_id=job.version_id,
        job_id=job.id,
        judge=report["judge"],
        quality=quality,
        reasons=list(reasons),
        report=report,
        choice=choice,
    )


def _succeed(uow: UnitOfWork, job: Job, done: int = 8) -> None:
    job.status = JobStatus.RUNNING
    job.lease_until = func.now()
    uow.session.flush()
    uow.repository.jobs.set_progress(job, "responses", done, done)
    uow.repository.jobs.finish(job, JobStatus.SUCCEEDED)
