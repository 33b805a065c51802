"""Content that a job stores step by step, so that another attempt resumes from it. The claim fences every write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from profiles.errors import NotFound
from profiles.fitting.claims import Claim, fenced, stop_if_cancelled
from profiles.models import FitQueryRow, JobKind
from profiles.repository.fits import StoredRows
from profiles.text import storable
from profiles.uow import UnitOfWork
from profiles.vectors import Vector

#: Kinds of text that belong to a fitted version; all others are removed when the job ends.
PAIR_KINDS = ("help_characteristics", "harm_characteristics", "help_response", "harm_response")


def save_queries(uow: UnitOfWork, claim: Claim, queries: Sequence[Mapping[str, Any]]) -> None:
    """Stores queries, each given by columns of `FitQueryRow`; of an existing one, updates split and group only.

    Raises: LeaseLost.
    """
    owner = {"tenant_id": claim.tenant_id, "version_id": claim.version_id}
    with fenced(uow, claim):
        uow.repository.fits.add_queries([{**query, **owner, "text": storable(query["text"])} for query in queries])


def load_queries(uow: UnitOfWork, claim: Claim) -> list[FitQueryRow]:
    """The stored queries by position."""
    return uow.repository.fits.queries(claim.version_id)


def save_texts(uow: UnitOfWork, claim: Claim, kind: str, texts: Mapping[int, str]) -> None:
    """Stores finished texts of one kind by position; a repetition changes nothing.

    A fit's answers and characteristics become part of its version; other texts are removed when the job ends.

    Raises: LeaseLost. NotFound: a position without a query.
    """
    if not texts:
        return
    with fenced(uow, claim) as job:
        kept = {position: storable(text) for position, text in texts.items()}
        if claim.kind is not JobKind.FIT or kind not in PAIR_KINDS:
            uow.repository.jobs.add_texts(job, kind, kept)
            return
        fits = uow.repository.fits
        ids = fits.query_ids(claim.version_id, list(kept))
        missing = [position for position in kept if position not in ids]
        if missing:
            raise NotFound("fit query", missing[0])
        owner = {"tenant_id": claim.tenant_id, "version_id": claim.version_id}
        fits.upsert_pairs([{"query_id": ids[at], **owner, kind: text} for at, text in kept.items()], [kind])


def load_texts(uow: UnitOfWork, claim: Claim) -> dict[str, dict[int, str]]:
    """Finished texts of earlier attempts of this job: kind → position → text."""
    found = uow.repository.jobs.texts(claim.job_id)
    if claim.kind is JobKind.FIT:
        found |= pair_texts(uow, claim)
    return found


def pair_texts(uow: UnitOfWork, claim: Claim) -> dict[str, dict[int, str]]:
    """The version's texts: kind → position → text."""
    found: dict[str, dict[int, str]] = {}
    for position, pair in uow.repository.fits.pairs(claim.version_id):
        for kind in PAIR_KINDS:
            text = getattr(pair, kind)
            if text is not None:
                found.setdefault(kind, {})[position] = text
    return found


def save_embeddings(uow: UnitOfWork, claim: Claim, positions: Sequence[int], embeddings: Vector) -> None:
    """Stores or replaces embeddings, to which requests are compared.

    Args:
        positions: n positions. embeddings: (n, E), unit rows.
    Raises: LeaseLost. JobCancelled.
    """
    with fenced(uow, claim) as job:
        stop_if_cancelled(job)
        uow.repository.fits.write_embeddings(claim.version_id, positions, embeddings)


def save_representations(
    uow: UnitOfWork, claim: Claim, positions: Sequence[int], layers: Sequence[int], sides: Mapping[str, Vector]
) -> None:
    """Stores or replaces representations, on which requests fit their own edit.

    Args:
        positions: n positions. sides: "help" and "harm" → (n, L, D) at `layers`.
    Raises: LeaseLost. JobCancelled.
    """
    with fenced(uow, claim) as job:
        stop_if_cancelled(job)
        fits = uow.repository.fits
        ids = fits.query_ids(claim.version_id, positions)
        fits.write_representations(claim.tenant_id, claim.version_id, [ids[p] for p in positions], layers, sides)


def load_representations(uow: UnitOfWork, claim: Claim) -> StoredRows | None:
    """The version's representations; None if it has none."""
    return uow.repository.fits.representations(claim.version_id)
