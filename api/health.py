"""Liveness and readiness. Ready names each of its parts, so that an operator sees at once which one is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import text
from starlette.concurrency import run_in_threadpool

from api.deps import ServicesDep
from api.http.errors import RETRY_AFTER_S
from api.services import Services
from profiles.delivery import broker
from profiles.errors import DatabaseUnavailable, ProfilesError
from profiles.migrate import serves_this_release

router = APIRouter(tags=["health"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """The state of a part that `/ready` checks."""

    ok: bool
    detail: str | None = None


class Ready(BaseModel):
    """Every part that this process needs, and the verdict."""

    status: Literal["ready", "not ready"]
    checks: dict[str, Check]


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Alive")
async def health() -> Live:
    """200 as long as the process answers at all; says nothing of database, broker or model."""
    return Live()


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Ready for requests", responses={503: {"model": Ready, "description": "Not ready"}})
async def ready(services: ServicesDep) -> JSONResponse:
    """Database reachable and migrated, broker reachable, model loaded; each as far as this role needs it."""
    probes = {"database": _database(services), "migrations": _migrations(services)}
    if services.settings.serves_control:
        probes["broker"] = _broker(services)
    outcomes = await asyncio.gather(*(_run(name, check, services) for name, check in probes.items()))
    checks = dict(zip(probes, outcomes, strict=True))
    if services.settings.serves_generation:
        works = services.model is not None and services.model_error is None
        checks["model"] = Check(ok=True) if works else Check(ok=False, detail=services.model_error or "loading")
    if services.draining.is_set():
        checks["draining"] = Check(ok=False, detail="the process is shutting down")
    ok = all(check.ok for check in checks.values())
    body = Ready(status="ready" if ok else "not ready", checks=checks)
    headers = {} if ok else {"retry-after": str(RETRY_AFTER_S)}
    return JSONResponse(body.model_dump(exclude_none=True), 200 if ok else 503, headers)


async def _run(name: str, check: Coroutine[Any, Any, None], services: Services) -> Check:
    """The check's outcome. One that hangs is waited for again by the next probe, not started beside it."""
    running = services.probes.get(name)
    if running is None or running.done():
        services.probes[name] = running = asyncio.create_task(check)
    else:
        check.close()
    timeout = services.settings.ready_timeout_s
    await asyncio.wait({running}, timeout=timeout)
    if not running.done():
        return Check(ok=False, detail=f"no answer within {timeout:g} s")
    error = running.exception()
    if isinstance(error, ProfilesError):
        return Check(ok=False, detail=str(error))
    if error is not None:
        raise error
    return Check(ok=True)


async def _database(services: Services) -> None:
    await services.database_threads.transaction(lambda uow: uow.session.execute(text("SELECT 1")))
    if services.settings.serves_control:
        await services.database_threads.check_writes()


async def _migrations(services: Services) -> None:
    if not await services.database_threads.transaction(lambda uow: serves_this_release(uow.session)):
        raise DatabaseUnavailable("the database is not at this release's migration; run `alignez migrate`")


async def _broker(services: Services) -> None:
    """Fits are queued in the database either way; a broker that is away only delays them."""
    await run_in_threadpool(broker.ping, services.database.broker_url, services.settings.ready_timeout_s)
