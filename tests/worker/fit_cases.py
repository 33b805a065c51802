"""Specs, engines that watch, fail or flatten, and what tests of jobs look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import torch
from sqlalchemy import func, select, update
from torch import Tensor

from alignez_core.engines.base import Completion, GenerationRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.proof.judges import Answered
from profiles.fitting import claims as jobs
from profiles.fitting.request import FitRequest
from profiles.models import Evaluation, FitQueryRow, Job, ProfileVersion, QueryRepresentations, VersionEdit
from profiles.service import get_job
from tests.factories import QUERIES
from tests.worker.conftest import Bench

N = len(QUERIES)
CHUNK = 16
#: Sizes of a proof that takes no time.
SMALL: dict[str, Any] = {"tune_queries": 2, "held_out_queries": 4, "answer_tokens": 8, "chunk_size": CHUNK}
#: Two forms of the edit and the prompt to choose from: every stage but characteristics and readings.
SPEC: dict[str, Any] = {
    "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
    "queries": QUERIES,
    "fit": {"contrast": 1.0, "prompt_margin": 2.0, **SMALL},
}
#: The paper's method, which also reads characteristics and whose requests look up their neighbours.
ALIGNEZ: dict[str, Any] = {**SPEC, "fit": {"method": "alignez", "neighbors": 3, **SMALL}}

#: sha256, texts by position, and generated rows.
Uninterrupted = tuple[str | None, dict[int, tuple[str | None, ...]], Counter[tuple[Any, ...]]]


class Killed(BaseException):
    """A kill -9, as far as one process can play it: nothing that catches errors sees it."""


class WatchedEngine(FakeEngine):
    """Calls `before` with the number of the generation that is about to start, and keeps every batch.

    Batches that only measure what an answer costs are passed on unseen: no text comes of them, so none is kept.
    """

    def __init__(self, before: Any = lambda call: None, **options: Any) -> None:
        super().__init__(**options)
        self.before = before
        self.batches: list[Sequence[GenerationRequest]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if not any(request.ignore_eos for request in requests):
            self.before(len(self.batches))
            self.batches.append(requests)
        return super().generate(requests)

    @property
    def rows(self) -> Counter[tuple[Any, ...]]:
        """How often each row was generated."""
        return Counter(
            (request.prompt, request.seed, request.edit and request.edit.sha256)
            for batch in self.batches
            for request in batch
        )


class FlatEngine(FakeEngine):
    """Represents everything as zero, so that no direction exists."""

    def represent(self, texts: Any, positions: Any = "last") -> Tensor:
        return torch.zeros_like(super().represent(texts, positions))


class FakeJudge:
    """Prefers what an edit or the persona's prompt made: whatever does not begin with "plain".

    Args:
        fail: raises, if it likes to, with the number of the comparison.
    """

    name = "openai:fake"

    def __init__(self, fail: Callable[[int], None] = lambda call: None) -> None:
        self.fail = fail
        self.calls = 0
        self.closed = False

    def compare(self, left: Sequence[Answered], right: Sequence[Answered]) -> list[int]:
        self.fail(self.calls)
        self.calls += 1
        return [self._score(a) - self._score(b) for a, b in zip(left, right, strict=True)]

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _score(answer: Answered) -> int:
        return int(not answer.text.strip().startswith("plain"))


def kill_at(call: int) -> Any:
    def kill(number: int) -> None:
        if number == call:
            raise Killed

    return kill


def let_the_lease_run_out(bench: Bench, job_id: UUID) -> None:
    with bench.open() as uow:
        past = func.clock_timestamp() - timedelta(seconds=1)
        uow.session.execute(update(Job).where(Job.id == job_id).values(lease_until=past))
    with bench.open() as uow:
        assert jobs.sweep(uow, 20.0)[0] == 1


def job_of(bench: Bench, job_id: UUID) -> Job:
    with bench.open() as uow:
        return get_job(uow, bench.caller, job_id)


def version_of(bench: Bench, request: FitRequest) -> ProfileVersion:
    with bench.open() as uow:
        return uow.session.get_one(ProfileVersion, request.version.id)


def queries_of(bench: Bench, request: FitRequest) -> list[FitQueryRow]:
    with bench.open() as uow:
        return uow.repository.fits.queries(request.version.id)


def evaluations_of(bench: Bench, request: FitRequest) -> list[Evaluation]:
    with bench.open() as uow:
        found = select(Evaluation).where(Evaluation.version_id == request.version.id).order_by(Evaluation.id)
        return list(uow.session.scalars(found))


def stored_vectors(bench: Bench, request: FitRequest) -> tuple[int, int]:
    """(representations over all layers, edits) of a version."""
    with bench.open() as uow:
        rows = select(func.coalesce(func.sum(func.cardinality(QueryRepresentations.layers)), 0))
        edits = select(func.count()).select_from(VersionEdit).where(VersionEdit.version_id == request.version.id)
        return (
            uow.session.scalars(rows.where(QueryRepresentations.version_id == request.version.id)).one(),
            uow.session.scalars(edits).one(),
        )
