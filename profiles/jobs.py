"""A worker's side of a job: claim, store as you go, publish. The claim's attempt number fences every write.

A worker that was thought dead and comes back finds another attempt number on the job and gets `LeaseLost`: it can
neither overwrite nor double what its successor does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import func

from profiles.errors import Conflict, JobCancelled, LeaseLost, ModelConflict, NotFound
from profiles.models import BaseModelRow, Job, JobStatus, QuerySource, VersionState
from profiles.repository.fits import StoredDirections
from profiles.service.aliases import DEFAULT_ALIAS, point_default
from profiles.tracing import NO_ORIGIN, Origin
from profiles.uow import UnitOfWork
from profiles.vectors import Vector

#: Errors and lost workers that a job survives.
MAX_FAILURES = 4
_BACKOFF_S = 3.0

ChunkKind = Literal["characteristics", "responses"]


@dataclass(frozen=True)
class Claim:
    """The right to work on a job until the lease ends."""

    job_id: UUID
    attempt: int
    tenant_id: UUID
    profile_id: UUID
    version_id: UUID
    spec: Mapping[str, Any]
    origin: Origin = NO_ORIGIN


@dataclass(frozen=True)
class QueryRecord:
    """A fit query at its fixed position."""

    position: int
    text: str
    source: QuerySource
    preferred: str | None = None
    dispreferred: str | None = None


@dataclass(frozen=True)
class TextChunk:
    """Generated texts of some positions, one of each side per position."""

    kind: ChunkKind
    positions: tuple[int, ...]
    help: tuple[str, ...]
    harm: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FittedVersion:
    """What `publish` stores beside the vectors that are there already.

    Args:
        config: complete fit configuration. layers: L edited layers, ascending. directions: over those layers.
        embedding_layer: None when another model makes the query embeddings.
        dropped: position → why its pair is not used.
    """

    config: Mapping[str, Any]
    layers: tuple[int, ...]
    directions: StoredDirections
    diagnostics: Mapping[str, Any]
    quality: str
    quality_reasons: tuple[str, ...]
    sha256: str
    embedding_layer: int | None = None
    tokens: int = 0
    dropped: Mapping[int, str] | None = None


def claim(uow: UnitOfWork, job_id: UUID, worker: str, lease_s: float) -> Claim | None:
    """Takes a queued job; None when it is finished, running elsewhere, or not due yet. One statement decides.

    Args:
        worker: a name for people. lease_s: how long the job is ours without a heartbeat.
    """
    job = uow.repository.jobs.claim(job_id, worker, lease_s)
    if job is None:
        return None
    version = uow.repository.catalog.version_by_id(job.version_id)
    if version is None:
        raise NotFound("version", job.version_id)
    uow.repository.jobs.add_event(job, "running")
    origin = Origin(job.request_id, job.traceparent)
    return Claim(job.id, job.attempt, job.tenant_id, job.profile_id, job.version_id, version.spec, origin)


def heartbeat(uow: UnitOfWork, claim: Claim, lease_s: float) -> bool:
    """Extends the lease; returns whether somebody asked to cancel the job. Raises: LeaseLost."""
    cancelled = uow.repository.jobs.extend_lease(claim.job_id, claim.attempt, lease_s)
    if cancelled is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    return cancelled


def bind_model(uow: UnitOfWork, claim: Claim, model: BaseModelRow) -> None:
    """Ties version and profile to the worker's model if they name none yet.

    Raises: ModelConflict: they belong to another fingerprint. LeaseLost.
    """
    catalog = uow.repository.catalog
    profile = catalog.profile(claim.tenant_id, claim.profile_id, lock=True)
    with _fence(uow, claim):
        version = catalog.version_by_id(claim.version_id)
        if profile is None or version is None:
            raise JobCancelled(claim.job_id)
        wanted = version.base_model_id or profile.base_model_id
        if wanted is not None and wanted != model.id:
            expected = catalog.base_model(wanted)
            raise ModelConflict(_label(expected) if expected else str(wanted), _label(model))
        version.base_model_id = model.id
        profile.base_model_id = model.id
        uow.session.flush()


def record_progress(uow: UnitOfWork, claim: Claim, stage: str, done: int, total: int) -> None:
    """Notes a stage's progress. Raises: LeaseLost. JobCancelled."""
    with _fence(uow, claim) as job:
        _stop_if_cancelled(job)
        uow.repository.jobs.set_progress(job, stage, done, total)


def save_queries(uow: UnitOfWork, claim: Claim, queries: Sequence[QueryRecord]) -> None:
    """Stores fit queries; a position that is taken keeps its query. Raises: LeaseLost."""
    with _fence(uow, claim):
        uow.repository.fits.add_queries(
            [
                {
                    "tenant_id": claim.tenant_id,
                    "version_id": claim.version_id,
                    "position": query.position,
                    "text": _storable(query.text),
                    "preferred": query.preferred,
                    "dispreferred": query.dispreferred,
                    "source": query.source,
                }
                for query in queries
            ]
        )


def load_queries(uow: UnitOfWork, claim: Claim) -> list[QueryRecord]:
    """Stored fit queries by position; none before an attempt has stored them."""
    return [
        QueryRecord(row.position, row.text, row.source, row.preferred, row.dispreferred)
        for row in uow.repository.fits.queries(claim.version_id)
    ]


def save_chunk(uow: UnitOfWork, claim: Claim, chunk: TextChunk) -> None:
    """Stores a finished chunk; saving it again changes nothing.

    Raises: LeaseLost. NotFound: a position without a query.
    """
    if not chunk.positions:
        return
    columns = _columns(chunk.kind)
    with _fence(uow, claim):
        ids = uow.repository.fits.query_ids(claim.version_id, chunk.positions)
        missing = [position for position in chunk.positions if position not in ids]
        if missing:
            raise NotFound("fit query", missing[0])
        uow.repository.fits.upsert_pairs(
            [
                {
                    "query_id": ids[position],
                    "tenant_id": claim.tenant_id,
                    "version_id": claim.version_id,
                    columns[0]: _storable(help_),
                    columns[1]: _storable(harm),
                }
                for position, help_, harm in zip(chunk.positions, chunk.help, chunk.harm, strict=True)
            ],
            columns,
        )


def load_chunks(uow: UnitOfWork, claim: Claim) -> list[TextChunk]:
    """What earlier attempts have finished: at most one chunk per kind."""
    pairs = uow.repository.fits.pairs(claim.version_id)
    chunks = []
    kinds: tuple[ChunkKind, ...] = ("characteristics", "responses")
    for kind in kinds:
        columns = _columns(kind)
        texts = [(at, getattr(pair, columns[0]), getattr(pair, columns[1])) for at, pair in pairs]
        done = [row for row in texts if row[1] is not None and row[2] is not None]
        if done:
            positions, help_, harm = zip(*done, strict=True)
            chunks.append(TextChunk(kind, positions, help_, harm))
    return chunks


def save_representations(
    uow: UnitOfWork,
    claim: Claim,
    positions: Sequence[int],
    layers: Sequence[int],
    embeddings: Vector,
    sides: Mapping[str, Vector],
) -> None:
    """Stores what a request is compared with and fitted from; saving it again replaces it.

    Args:
        positions: n of them. embeddings: (n, D), unit rows. sides: "help", "harm", "plain" → (n, L, D) at `layers`.
    Raises: LeaseLost. JobCancelled.
    """
    with _fence(uow, claim) as job:
        _stop_if_cancelled(job)
        fits = uow.repository.fits
        ids = fits.query_ids(claim.version_id, positions)
        fits.write_embeddings(claim.version_id, positions, embeddings)
        fits.write_representations(claim.tenant_id, claim.version_id, [ids[p] for p in positions], layers, sides)


def publish(uow: UnitOfWork, claim: Claim, fitted: FittedVersion) -> None:
    """Makes the version ready and ends the job; from here on the version is immutable.

    The profile's first ready version becomes its default, a later one if it was asked to.

    Raises: LeaseLost. JobCancelled: also when the profile was deleted. Conflict: representations are missing.
    """
    catalog = uow.repository.catalog
    # The profile's row first: deleting a profile locks in this order too.
    profile = catalog.profile(claim.tenant_id, claim.profile_id, lock=True)
    with _fence(uow, claim) as job:
        _stop_if_cancelled(job)
        version = catalog.version_by_id(claim.version_id)
        if profile is None or version is None or version.state is not VersionState.PENDING:
            raise JobCancelled(claim.job_id)
        fits = uow.repository.fits
        for position, reason in (fitted.dropped or {}).items():
            fits.drop_pair(claim.tenant_id, claim.version_id, position, reason)
        total, complete = fits.count_complete(claim.version_id, fitted.layers)
        if complete != total - len(fitted.dropped or {}) or not complete:
            raise Conflict(f"{complete} of {total} fit queries have their representations")
        fits.write_directions(claim.tenant_id, claim.version_id, fitted.directions)
        version.state = VersionState.READY
        version.fit_config = dict(fitted.config)
        version.layers = list(fitted.layers)
        version.embedding_layer = fitted.embedding_layer
        version.diagnostics = _json_safe(dict(fitted.diagnostics))
        version.quality = fitted.quality
        version.quality_reasons = list(fitted.quality_reasons)
        version.sha256 = fitted.sha256
        version.ready_at = func.now()
        uow.session.flush()
        if version.promote or not catalog.alias_targets(profile.id, DEFAULT_ALIAS):
            point_default(uow, profile, version)
        spent = {"tenant_id": claim.tenant_id, "profile_id": claim.profile_id, "fit_tokens": fitted.tokens}
        uow.repository.accounts.add_usage([{**spent, "day": func.current_date()}])
        uow.repository.jobs.finish(job, JobStatus.SUCCEEDED)


def fail(
    uow: UnitOfWork,
    claim: Claim,
    code: str,
    message: str,
    *,
    retryable: bool = False,
    max_failures: int = MAX_FAILURES,
) -> bool:
    """Ends the job as failed, or queues it again with a growing pause; returns whether it will be tried again.

    Args:
        code: one a person can act on. message: for the job's owner, without stack trace.
    Raises: LeaseLost.
    """
    with _fence(uow, claim) as job:
        return _fail(uow, job, code, message, retryable and job.cancel_requested_at is None, max_failures)


def acknowledge_cancel(uow: UnitOfWork, claim: Claim) -> None:
    """Ends the job as cancelled. Raises: LeaseLost."""
    with _fence(uow, claim) as job:
        uow.repository.jobs.finish(job, JobStatus.CANCELLED, "cancelled", "cancelled while running")


def hand_back(uow: UnitOfWork, claim: Claim) -> None:
    """Queues the job again at once, for a worker that shuts down; not counted as a failure. Raises: LeaseLost."""
    with _fence(uow, claim) as job:
        if job.cancel_requested_at is not None:
            uow.repository.jobs.finish(job, JobStatus.CANCELLED, "cancelled", "cancelled while running")
        else:
            uow.repository.jobs.requeue(job)


def sweep(uow: UnitOfWork, resend_s: float, *, max_failures: int = MAX_FAILURES) -> tuple[int, int]:
    """Mends what a killed process or an emptied broker left: returns (leases ended, messages to send again).

    Args:
        resend_s: how long a queued job may wait for a worker before its first message is sent again.
    """
    jobs = uow.repository.jobs
    expired = jobs.expired(100)
    for job in expired:
        if job.cancel_requested_at is not None:
            jobs.finish(job, JobStatus.CANCELLED, "cancelled", "cancelled while running")
            continue
        message = f"worker {job.worker} stopped answering"
        _fail(uow, job, "worker_lost", message, True, max_failures, pause_s=0.0)
    return len(expired), jobs.resend(resend_s)


def _fail(
    uow: UnitOfWork,
    job: Job,
    code: str,
    message: str,
    retryable: bool,
    max_failures: int,
    pause_s: float = _BACKOFF_S,
) -> bool:
    job.failures += 1
    code, message = code[:64], _storable(message)[:2000]
    if not retryable or job.failures >= max_failures:
        uow.repository.jobs.finish(job, JobStatus.FAILED, code, message)
        return False
    job.error_code, job.error_message = code, message
    uow.session.flush()
    uow.repository.jobs.add_event(job, "retry")
    uow.repository.jobs.requeue(job, pause_s * 2 ** (job.failures - 1))
    return True


@contextmanager
def _fence(uow: UnitOfWork, claim: Claim) -> Iterator[Job]:
    """The job's locked row, if this attempt still owns it."""
    job = uow.repository.jobs.fenced(claim.job_id, claim.attempt)
    if job is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    yield job


def _stop_if_cancelled(job: Job) -> None:
    if job.cancel_requested_at is not None:
        raise JobCancelled(job.id)


def _columns(kind: ChunkKind) -> tuple[str, str]:
    if kind == "characteristics":
        return "help_characteristics", "harm_characteristics"
    return "help_response", "harm_response"


def _storable(text: str) -> str:
    """Postgres holds no NUL, and a model can generate one."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _json_safe(value: Any) -> Any:
    """The same with NaN and infinities, which JSON and Postgres do not have, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    return value


def _label(model: BaseModelRow) -> str:
    return f"{model.name} ({model.fingerprint[:12]})"
