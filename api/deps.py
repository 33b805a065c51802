"""Dependencies of routes: the process's parts, the caller, a transaction; and the route class that provides them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.database import DatabaseThreads
from api.services import Model, Services
from profiles.errors import Forbidden
from profiles.models import Role
from profiles.service import Caller
from profiles.uow import UnitOfWork

#: Declares the scheme in the OpenAPI file; the key itself is read from the header by `KeyedRoute`.
_bearer = HTTPBearer(auto_error=False, bearerFormat="alignez API key", description="`Authorization: Bearer <key>`")


def services_of(request: Request) -> Services:
    """The process's parts."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


class KeyedRoute(APIRoute):
    """A route that needs a key. Every router but the probes' has it as its `route_class`.

    The key is checked before the body is read: FastAPI reads and parses it before any dependency runs, and nobody
    without a key may cause that work. A route with a parameter `uow` runs in one transaction and one thread call.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _in_a_transaction(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind the check of the key."""
        handle = super().get_route_handler()

        async def handle_caller(request: Request) -> Response:
            request.state.caller = await _authenticate(request)
            return await handle(request)

        return handle_caller


async def _authenticate(request: Request) -> Caller:
    services = services_of(request)
    header = request.headers.get("authorization")
    caller = services.auth.recall(header)
    if caller is None:
        caller = await services.database_threads.run(functools.partial(services.auth.look_up, header))
    structlog.contextvars.bind_contextvars(tenant=str(caller.tenant_id))
    return caller


def _in_a_transaction(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A route function with a `uow`, as a coroutine that runs it in a transaction, committed before the response.

    FastAPI itself would enter and leave the dependency, run the function and serialise its result in four thread
    calls, with the connection held between them.
    """
    if inspect.iscoroutinefunction(endpoint) or "uow" not in inspect.signature(endpoint).parameters:
        return endpoint

    @functools.wraps(endpoint)
    async def run(*, uow: DatabaseThreads, **arguments: Any) -> Any:
        return await uow.transaction(lambda opened: endpoint(uow=opened, **arguments))

    return run


async def _caller(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def _admin(caller: CallerDep) -> Caller:
    if caller.role != Role.ADMIN:
        raise Forbidden(Role.ADMIN.value)
    return caller


AdminDep = Annotated[Caller, Depends(_admin)]


async def _database_threads(services: ServicesDep) -> DatabaseThreads:
    return services.database_threads


#: For a parameter named `uow` of a plain function; `KeyedRoute` puts the open transaction in the threads' place.
UowDep = Annotated[UnitOfWork, Depends(_database_threads)]


async def _model(services: ServicesDep, _: CallerDep) -> Model:
    return services.require_model()


#: Async, so that it costs no thread.
ModelDep = Annotated[Model, Depends(_model)]
