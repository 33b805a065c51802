"""Tenants with keys, and profiles that are really fitted, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from alignez_core.engines.base import Engine
from profiles.fitting.request import request_fit
from profiles.service import Caller, KeySpec, ModelFacts, create_key, create_tenant, promote
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from worker.engine import LoadedEngine
from worker.job import JobOptions
from worker.runner import JobRunner


def new_tenant(sessions: SessionFactory, name: str) -> tuple[Caller, str]:
    """A member of a new tenant, and its key."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        row, secret = create_key(uow, create_tenant(uow, name).id, KeySpec("member", "bench"))
        return Caller(row.id, row.tenant_id, row.role), secret


def runner(sessions: SessionFactory, engine: Engine, source: str, bank: tuple[str, ...]) -> JobRunner:
    """A worker's job runner with this engine and query bank; `source` is the model's name in the worker's settings."""
    loaded = LoadedEngine(engine, ModelFacts.of(engine.info, engine.info.name, source), bank)
    return JobRunner(sessions, loaded, JobOptions("bench", 60.0, 600.0, 1, 5.0, 256))


def fit(sessions: SessionFactory, runs: JobRunner, caller: Caller, name: str, spec: Mapping[str, Any]) -> UUID:
    """Fits a new profile and promotes its version; returns the version's id. Raises: RuntimeError: the fit failed."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        request = request_fit(uow, caller, spec, name=name)
        job, version = request.job.id, request.version.id
    if (outcome := runs.run(job)) != "succeeded":
        raise RuntimeError(f"the fit of {name!r} ended as {outcome!r}")
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        promote(uow, caller, name, 1, force=True)  # the few queries of a benchmark prove little
    return version
