"""Liveness and readiness. Ready names each of its parts, so that an operator sees at once which one is missing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import text

from api.deps import ServicesDep
from api.http.errors import RETRY_AFTER_S
from api.services import Services
from profiles.errors import BrokerUnavailable, DatabaseUnavailable, ProfilesError
from profiles.migrate import serves_this_release
from profiles.uow import UnitOfWork

router = APIRouter(tags=["health"])

_PORTS = {"amqp": 5672, "amqps": 5671, "pyamqp": 5672, "redis": 6379, "rediss": 6379}


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One part."""

    ok: bool
    detail: str | None = None


class Ready(BaseModel):
    """Every part that this process needs, and the verdict."""

    status: Literal["ready", "not ready"]
    checks: dict[str, Check]


@router.get("/health", summary="Alive")
async def health() -> Live:
    """200 as long as the process answers at all; says nothing of database, broker or model."""
    return Live()


@router.get("/ready", summary="Ready for requests", responses={503: {"model": Ready, "description": "Not ready"}})
async def ready(services: ServicesDep) -> JSONResponse:
    """Database reachable and migrated, broker reachable, model loaded; each as far as this role needs it."""
    timeout = services.settings.ready_timeout_s
    names = ["database", "migrations"]
    runs = [_run(_database, services, timeout), _run(_migrations, services, timeout)]
    if services.settings.serves_control:
        names.append("broker")
        runs.append(_run(_broker, services, timeout))
    checks = dict(zip(names, await asyncio.gather(*runs), strict=True))
    if services.settings.serves_generation:
        works = services.model is not None and services.model_error is None
        checks["model"] = Check(ok=True) if works else Check(ok=False, detail=services.model_error or "loading")
    if services.draining.is_set():
        checks["draining"] = Check(ok=False, detail="the process is shutting down")
    ok = all(check.ok for check in checks.values())
    body = Ready(status="ready" if ok else "not ready", checks=checks)
    headers = {} if ok else {"retry-after": str(RETRY_AFTER_S)}
    return JSONResponse(body.model_dump(exclude_none=True), 200 if ok else 503, headers)


async def _run(check: Callable[[Services], None], services: Services, timeout: float) -> Check:
    try:
        async with asyncio.timeout(timeout):
            # Abandoned on timeout: a thread that hangs in a dead connection must not hold the answer back.
            await to_thread.run_sync(check, services, abandon_on_cancel=True)
    except TimeoutError:
        return Check(ok=False, detail=f"no answer within {timeout:g} s")
    except ProfilesError as error:
        return Check(ok=False, detail=str(error))
    return Check(ok=True)


def _database(services: Services) -> None:
    with UnitOfWork.open(services.sessions) as uow:
        uow.session.execute(text("SELECT 1"))


def _migrations(services: Services) -> None:
    with UnitOfWork.open(services.sessions) as uow:
        if not serves_this_release(uow.session):
            raise DatabaseUnavailable("the database is not at this release's migration; run `alignez migrate`")


def _broker(services: Services) -> None:
    """Opens a connection to the broker and, where it speaks first or answers a PING, reads one byte of it.

    Fits are queued in the database either way; a broker that is away only delays them. So this is about reaching it,
    not about credentials, which the relay checks.
    """
    url = urlsplit(services.database.broker_url)
    try:
        with _connect(url.scheme, url.hostname, url.port, url.path, services.settings.ready_timeout_s) as connection:
            if url.scheme.startswith("redis"):
                if url.scheme == "redis" or "socket" in url.scheme:
                    connection.sendall(b"PING\r\n")
                    if not connection.recv(1):  # +PONG, or -NOAUTH: either is a living Redis
                        raise BrokerUnavailable
            elif url.scheme in ("amqp", "pyamqp"):
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                if not connection.recv(1):
                    raise BrokerUnavailable
    except (OSError, ValueError) as error:
        raise BrokerUnavailable from error


def _connect(scheme: str, host: str | None, port: int | None, path: str, timeout: float) -> socket.socket:
    if scheme in ("redis+socket", "unix"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            raise
        return connection
    return socket.create_connection((host or "127.0.0.1", port or _PORTS.get(scheme, 5672)), timeout)
