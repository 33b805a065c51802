"""A fake engine, and the parts of a fit job around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.trace import Tracer

from alignez_core.engines.base import Engine
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.query_bank import default_queries
from profiles.fitting.evaluations import request_evaluation
from profiles.fitting.request import FitRequest
from profiles.models import Job
from profiles.service import Caller, ModelFacts
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.factories import Factory
from worker.engine import LoadedEngine
from worker.job import JobOptions
from worker.judges import JudgeMaker
from worker.metrics import WorkerMetrics
from worker.runner import JobRunner, only_self

OPTIONS = JobOptions(
    worker="test", lease_s=30.0, time_limit_s=600.0, max_failures=3, database_patience_s=5.0, store_rows=5
)


def loaded(engine: Engine | None = None, bank: Sequence[str] | None = None) -> LoadedEngine:
    """An engine, by default a fake one, as the worker holds it."""
    engine = engine or FakeEngine()
    info = engine.info
    facts = ModelFacts(
        name=info.name,
        source="fake:",
        fingerprint=info.fingerprint,
        n_layers=info.n_layers,
        hidden_size=info.hidden_size,
        context_length=info.context_length,
        prompt_format=info.prompt_format,
    )
    return LoadedEngine(engine, facts, tuple(bank or default_queries()[:16]))


@dataclasses.dataclass
class Bench:
    """Asks for fits and evaluations and runs them, each step in its own transaction."""

    sessions: SessionFactory
    caller: Caller

    def request(self, **options: Any) -> FitRequest:
        """A queued job."""
        with UnitOfWork.open(self.sessions, PLATFORM) as uow:
            return Factory(uow).fit(self.caller, **options)

    def evaluation(self, request: FitRequest, **settings: Any) -> Job:
        """A queued evaluation of a ready version."""
        with UnitOfWork.open(self.sessions, PLATFORM) as uow:
            return request_evaluation(uow, self.caller, request.profile.id, request.version.number, settings)

    def runner(self, engine: LoadedEngine | None = None, **changes: Any) -> JobRunner:
        """A worker's runner."""
        stopping: Callable[[], bool] = changes.pop("stopping", lambda: False)
        metrics: WorkerMetrics | None = changes.pop("metrics", None)
        tracer: Tracer | None = changes.pop("tracer", None)
        make_judge: JudgeMaker = changes.pop("make_judge", only_self)
        options = dataclasses.replace(OPTIONS, **changes)
        return JobRunner(self.sessions, engine or loaded(), options, stopping, metrics, tracer, make_judge)

    def open(self) -> AbstractContextManager[UnitOfWork]:
        return UnitOfWork.open(self.sessions, PLATFORM)


@pytest.fixture
def bench(committed: SessionFactory) -> Bench:
    """Really commits, for a fit uses several connections."""
    with UnitOfWork.open(committed, PLATFORM) as uow:
        caller = Factory(uow).caller()
    return Bench(committed, caller)


def texts_of(bench: Bench, version_id: UUID) -> dict[int, tuple[str | None, ...]]:
    """Position → characteristics and responses of a version's pairs."""
    with UnitOfWork.open(bench.sessions, PLATFORM) as uow:
        return {
            position: (p.help_characteristics, p.harm_characteristics, p.help_response, p.harm_response)
            for position, p in uow.repository.fits.pairs(version_id)
        }


def scratch_of(bench: Bench, job_id: UUID) -> dict[str, dict[int, str]]:
    """Kind → position → text of a job's scratch."""
    with UnitOfWork.open(bench.sessions, PLATFORM) as uow:
        return uow.repository.jobs.texts(job_id)
