"""Engines that watch, fail or flatten, and what tests of fit jobs look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from sqlalchemy import func, select, update
from torch import Tensor

from alignez_core.engines.base import Completion, GenerationRequest
from alignez_core.engines.fake_engine import FakeEngine
from profiles import jobs
from profiles.models import FitQueryRow, Job, ProfileVersion, QueryRepresentations
from profiles.service import FitRequest, get_job
from tests.factories import QUERIES
from tests.worker.conftest import Bench, texts_of

N = len(QUERIES)
CHUNK = 4
#: Three chunks of characteristics, then three of responses.
SPEC: dict[str, Any] = {
    "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
    "queries": QUERIES,
    "fit": {"neighbors": 3, "chunk_size": CHUNK, "responses": "all", "response_tokens": 12},
}

#: sha256, texts by position, and generated rows.
Uninterrupted = tuple[str | None, dict[int, tuple[str | None, ...]], Counter[tuple[Any, ...]]]


class Killed(BaseException):
    """A kill -9, as far as one process can play it: nothing that catches errors sees it."""


class WatchedEngine(FakeEngine):
    """Calls `before` with the number of the generation that is about to start, and keeps every batch."""

    def __init__(self, before: Any = lambda call: None, **options: Any) -> None:
        super().__init__(**options)
        self.before = before
        self.batches: list[Sequence[GenerationRequest]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.before(len(self.batches))
        self.batches.append(requests)
        return super().generate(requests)

    @property
    def rows(self) -> Counter[tuple[Any, ...]]:
        """How often each row was generated."""
        return Counter((request.prompt, request.seed) for batch in self.batches for request in batch)


class FlatEngine(FakeEngine):
    """Represents everything as zero, so that no direction exists."""

    def represent(self, texts: Any, positions: Any = "last") -> Tensor:
        return torch.zeros_like(super().represent(texts, positions))


def kill_at(call: int) -> Any:
    def kill(number: int) -> None:
        if number == call:
            raise Killed

    return kill


def let_the_lease_run_out(bench: Bench, request: FitRequest) -> None:
    with bench.open() as uow:
        past = func.clock_timestamp() - timedelta(seconds=1)
        uow.session.execute(update(Job).where(Job.id == request.job.id).values(lease_until=past))
    with bench.open() as uow:
        assert jobs.sweep(uow, 20.0)[0] == 1


def job_of(bench: Bench, request: FitRequest) -> Job:
    with bench.open() as uow:
        return get_job(uow, bench.caller, request.job.id)


def version_of(bench: Bench, request: FitRequest) -> ProfileVersion:
    with bench.open() as uow:
        return uow.session.get_one(ProfileVersion, request.version.id)


def queries_of(bench: Bench, request: FitRequest) -> list[FitQueryRow]:
    with bench.open() as uow:
        return uow.repository.fits.queries(request.version.id)


def stored_vectors(bench: Bench, request: FitRequest) -> int:
    with bench.open() as uow:
        count = select(func.coalesce(func.sum(func.cardinality(QueryRepresentations.layers)), 0))
        return uow.session.scalars(count.where(QueryRepresentations.version_id == request.version.id)).one()


def finished_texts(bench: Bench, request: FitRequest) -> dict[str, list[int]]:
    """Which positions are stored, by kind."""
    pairs = texts_of(bench, request.version.id)
    return {
        "characteristics": [i for i, pair in pairs.items() if pair[0] is not None and pair[1] is not None],
        "responses": [i for i, pair in pairs.items() if pair[2] is not None and pair[3] is not None],
    }
