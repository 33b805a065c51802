"""An evaluation job: proves a stored version again and stores the verdict; the version does not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from alignez_core.editing import EditPlan
from alignez_core.fit import given_verdicts
from alignez_core.fit_run import FitRun
from alignez_core.methods.base import Candidate
from alignez_core.prompts import Prefix
from alignez_core.proof.arms import BARE_ARM, Arena, Trial
from alignez_core.proof.gate import data_reasons, weak_reasons
from alignez_core.proof.judges import Judge, Likelihoods, SelfJudge
from alignez_core.proof.report import prove
from alignez_core.readings import Readings
from alignez_core.serving_plan import PlanSource
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName
from alignez_core.spec.persona import FitQuery, Persona
from alignez_core.spec.samples import Sample, of_split, spread
from profiles.errors import JobCancelled, NotFound
from profiles.fitting import content, publishing
from profiles.models import FitQueryRow, QuerySource
from profiles.repository.fits import StoredRows
from profiles.service import ActiveProfile, load_active
from profiles.uow import UnitOfWork
from worker.job import ClaimedJob
from worker.judges import JudgeMaker, judged

#: Number of exchanges at the beginning of third-turn conversations.
_HISTORY = 2


@dataclass(frozen=True, eq=False)
class _Stored:
    """The parts of a version that an evaluation reads."""

    active: ActiveProfile
    samples: list[Sample]
    rows: StoredRows | None
    texts: dict[str, dict[int, str]]
    explained: dict[str, Any]


def run_evaluation(job: ClaimedJob, make_judge: JudgeMaker) -> publishing.Verdict:
    """Proves the claimed job's version with the job's settings, and stores the verdict.

    Raises: the errors that stop or fail a job; see `worker.failures`.
    """
    job.bind_model()
    stored = job.do(lambda uow: _load(uow, job))
    config = FitConfig.from_dict({**stored.active.config, **job.claim.request})
    held_out = _held_out(job, stored.samples, config.held_out_queries)
    verdict, without = judged(make_judge, config, lambda judge: _prove(job, stored, config, held_out, judge))
    if without is not None:
        verdict = replace(verdict, report={**verdict.report, "judge_fallback": without})
    job.do_counting(lambda uow: publishing.publish_evaluation(uow, job.claim, verdict))
    return verdict


def _load(uow: UnitOfWork, job: ClaimedJob) -> _Stored:
    """Reads the version. Raises: JobCancelled: it was archived."""
    claim = job.claim
    try:
        active = load_active(uow, claim.version_id)
    except NotFound as error:
        raise JobCancelled(claim.job_id) from error
    version = uow.repository.catalog.version_by_id(claim.version_id)
    return _Stored(
        active,
        stored_samples(claim.spec, content.load_queries(uow, claim)),
        content.load_representations(uow, claim),
        content.pair_texts(uow, claim),
        (version.diagnostics or {}).get("explained", {}) if version is not None else {},
    )


def _held_out(job: ClaimedJob, samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` held-out queries: the version's own, then queries of the bank that the version did not use.

    A version with several personas uses none of the bank, whose queries belong to no persona.
    """
    held = spread(of_split(samples, "held_out"), count)
    if len(held) == count or any(sample.group for sample in samples):
        return held
    known = {sample.query.casefold() for sample in samples}
    spare = [text for text in dict.fromkeys(job.bank()) if text.casefold() not in known]
    first = 1 + max((sample.index for sample in samples), default=-1)
    persona = samples[0].persona
    return held + [
        Sample(first + i, text, persona, "bank", split="held_out") for i, text in enumerate(spare[: count - len(held)])
    ]


def _prove(
    job: ClaimedJob, stored: _Stored, config: FitConfig, held_out: Sequence[Sample], judge: Judge | None
) -> publishing.Verdict:
    engine, fit = job.engine, of_split(stored.samples, "fit")
    run = FitRun(engine, config, job.recorder(), job.resume())
    likelihoods = Likelihoods(engine)
    arena = Arena(run, judge or SelfJudge(likelihoods), likelihoods)
    candidate = stored_candidate(stored.active, stored.rows, stored.explained)
    source = PlanSource(engine, config, fit, candidate.neighbor_rows)
    tune = of_split(stored.samples, "tune")[-_HISTORY:]
    if tune:
        arena.ask("evaluation", [BARE_ARM], [Trial(tuple(tune))])
    report = prove(arena, candidate, held_out, source.dosed(candidate), tune=tune)
    help_, harm = (stored.texts.get(f"{side}_response", {}) for side in ("help", "harm"))
    reasons = weak_reasons(report) + data_reasons(fit, help_, harm, given_verdicts(arena, fit))
    run.report("evaluation", 1, 1)
    return publishing.Verdict(
        judge=report["judge"],
        quality="weak" if reasons else "good",
        reasons=reasons,
        report={**report, "explained": stored.explained},
    )


def stored_samples(spec: Mapping[str, Any], queries: Sequence[FitQueryRow]) -> list[Sample]:
    """The samples of a stored version."""
    persona = Persona.from_dict(spec["persona"])
    samples = []
    for row in queries:
        given = None
        if row.source is QuerySource.PAIR:  # pairs follow the queries
            pair = spec["pairs"][row.position - len(spec["queries"])]
            given = (pair["preferred"], pair["dispreferred"])
        own = FitQuery(row.text, row.preferred, row.dispreferred).persona(persona)
        samples.append(Sample(row.position, row.text, own, row.source.value, given, row.persona_group, row.split.value))
    return samples


def stored_candidate(active: ActiveProfile, rows: StoredRows | None, explained: dict[str, Any]) -> Candidate:
    """A ready version as a candidate of the proof."""
    return Candidate(
        name=f"version {active.number}",
        method=cast("MethodName", active.method),
        edits=tuple(
            EditPlan.from_arrays(active.layers, edit.u, edit.v, edit.c, active.steps, active.positions)
            for edit in active.edits
        ),
        prefix=None if active.prefix is None else Prefix.from_dict(active.prefix),
        neighbor_rows=None
        if rows is None or active.lookup != "neighbors"
        else Readings(rows.positions, rows.layers, torch.from_numpy(rows.help), torch.from_numpy(rows.harm)),
        explained={int(layer): float(share) for layer, share in explained.items()},
    )
