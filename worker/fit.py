"""A fit job from its claim to its publication, in short transactions of one chunk each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignez_core.embeddings import LM_ENCODER, embedding_layer
from alignez_core.fit import FittedProfile, fit_profile
from alignez_core.fit_run import OWN_QUERIES, TextChunk
from alignez_core.proof.judges import Judge
from alignez_core.spec.persona import FitQuery, FitSpec
from alignez_core.spec.samples import complete_spec, make_samples
from profiles.fitting import content, publishing
from profiles.models import QuerySource
from profiles.repository.fits import StoredEdit
from profiles.uow import UnitOfWork
from worker.job import ClaimedJob
from worker.judges import JudgeMaker, judged


def run_fit(job: ClaimedJob, make_judge: JudgeMaker) -> FittedProfile:
    """Fits and publishes the claimed version.

    Raises: the errors that stop or fail a job; see `worker.failures`.
    """
    job.bind_model()
    spec = complete_spec(job.claim.spec, job.bank())
    job.do(lambda uow: _prepare(uow, job, spec))

    def on_queries(uow: UnitOfWork, texts: Mapping[int, str]) -> None:
        content.save_queries(uow, job.claim, _query_rows(spec, tuple(texts.values())))

    def fit(judge: Judge | None) -> FittedProfile:
        return fit_profile(job.engine, spec, job.recorder(on_queries), _resume(job), judge)

    fitted, without = judged(make_judge, spec.config, fit)
    if without is not None:
        fitted = replace(fitted, report={**fitted.report, "judge_fallback": without})
    _store(job, fitted)
    version = _version(job, fitted)
    job.do_counting(lambda uow: publishing.publish(uow, job.claim, version))
    return fitted


def _prepare(uow: UnitOfWork, job: ClaimedJob, spec: FitSpec) -> None:
    """Stores the queries once. If the model invents some, `on_queries` stores all of them together.

    The positions of the bank's queries follow those of the invented ones.
    """
    if not spec.config.own_queries and not content.load_queries(uow, job.claim):
        content.save_queries(uow, job.claim, _query_rows(spec))


def _query_rows(spec: FitSpec, own_queries: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All queries of a fit for the database.

    Args:
        own_queries: all queries that the model invented, because the positions of the bank's queries follow theirs.
    """
    rows = []
    for sample in make_samples(spec, own_queries):
        phrases = spec.queries[sample.index] if sample.origin == "given" else FitQuery(sample.query)
        rows.append({
            "position": sample.index, "text": sample.query, "source": sample.origin, "split": sample.split,
            "preferred": phrases.preferred, "dispreferred": phrases.dispreferred, "persona_group": sample.group,
        })  # fmt: skip
    return rows


def _resume(job: ClaimedJob) -> list[TextChunk]:
    """Finished texts of earlier attempts, for the core."""
    queries = job.do(lambda uow: content.load_queries(uow, job.claim))
    invented = [query for query in queries if query.source is QuerySource.INVENTED]
    chunks = job.resume()
    if invented:
        positions, texts = tuple(q.position for q in invented), tuple(q.text for q in invented)
        chunks.insert(0, TextChunk(OWN_QUERIES, positions, texts))
    return chunks


def _store(job: ClaimedJob, fitted: FittedProfile) -> None:
    """Stores given pairs and all vectors, some rows per transaction, so that the publication is short."""
    pairs = {sample.index: sample.given for sample in fitted.samples if sample.given is not None}
    for kind, side in (("help_response", 0), ("harm_response", 1)):
        texts = {index: given[side] for index, given in pairs.items()}
        job.do(lambda uow, kind=kind, texts=texts: content.save_texts(uow, job.claim, kind, texts))  # type: ignore[misc]
    positions = fitted.looked_up
    for start in range(0, len(positions), job.options.store_rows):
        job.check()
        _store_rows(job, fitted, positions, slice(start, start + job.options.store_rows))


def _store_rows(job: ClaimedJob, fitted: FittedProfile, positions: Sequence[int], rows: slice) -> None:
    embeddings = fitted.embeddings[rows].numpy()
    readings = fitted.neighbor_rows

    def store(uow: UnitOfWork) -> None:
        content.save_embeddings(uow, job.claim, positions[rows], embeddings)
        if readings is not None:
            sides = {"help": readings.help[rows].numpy(), "harm": readings.harm[rows].numpy()}
            content.save_representations(uow, job.claim, positions[rows], readings.layers, sides)

    job.do(store)


def _version(job: ClaimedJob, fitted: FittedProfile) -> publishing.FittedVersion:
    config, edits = fitted.config, fitted.edits
    encodes = bool(fitted.looked_up) and config.query_encoder == LM_ENCODER
    return publishing.FittedVersion(
        config=config.to_dict(),
        method=fitted.method,
        layers=fitted.layers,
        edits=[StoredEdit(plan.U.numpy(), plan.V.numpy(), plan.c.numpy()) for plan in edits],
        prefix=None if fitted.prefix is None else fitted.prefix.to_dict(),
        steps=edits[0].steps if edits else None,
        positions=edits[0].positions if edits else "answer",
        lookup="neighbors" if fitted.neighbor_rows is not None else "groups" if fitted.looked_up else "none",
        looked_up=len(fitted.looked_up),
        diagnostics=fitted.diagnostics,
        sha256=fitted.sha256,
        verdict=publishing.Verdict(
            judge=fitted.report["judge"],
            quality=fitted.quality,
            reasons=fitted.quality_reasons,
            report=fitted.report,
            choice=fitted.choice,
        ),
        embedding_layer=embedding_layer(job.loaded.facts.n_layers) if encodes else None,
        dropped=fitted.dropped,
    )
