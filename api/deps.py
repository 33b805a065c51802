"""What routes ask for: the process's parts, the caller, a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.services import Model, Services
from profiles.errors import Forbidden
from profiles.models import Role
from profiles.service import Caller
from profiles.uow import UnitOfWork

#: Declares the scheme in the OpenAPI file; the key itself is read from the header below.
_bearer = HTTPBearer(auto_error=False, bearerFormat="alignez API key", description="`Authorization: Bearer <key>`")


def services_of(request: Request) -> Services:
    """The process's parts."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


async def _caller(request: Request, services: ServicesDep, _: Annotated[object, Security(_bearer)]) -> Caller:
    header = request.headers.get("authorization")
    caller = services.auth.recall(header)
    if caller is None:
        caller = await run_in_threadpool(services.auth.look_up, header)
    structlog.contextvars.bind_contextvars(tenant=str(caller.tenant_id))
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def _admin(caller: CallerDep) -> Caller:
    if caller.role != Role.ADMIN:
        raise Forbidden(Role.ADMIN.value)
    return caller


AdminDep = Annotated[Caller, Depends(_admin)]


def _unit_of_work(services: ServicesDep, _: CallerDep) -> Iterator[UnitOfWork]:
    # After the caller: a request without a key must not take a connection.
    with UnitOfWork.open(services.sessions) as uow:
        yield uow


#: scope="function": the commit happens before the response is sent, so a failed one is not a 200.
UowDep = Annotated[UnitOfWork, Depends(_unit_of_work, scope="function")]


async def _async_model(services: ServicesDep, _: CallerDep) -> Model:
    return services.require_model()


#: Async, so that it costs no thread.
ModelDep = Annotated[Model, Depends(_async_model)]
