"""Dependencies of routes: the process's parts, the caller, a transaction; and the route class that provides them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import structlog
from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.database import DatabaseThreads
from api.services import Model, Services
from profiles.errors import Forbidden
from profiles.models import Role
from profiles.service import Caller, note_refused_call
from profiles.uow import CALLED_FROM, PLATFORM, CalledFrom, Scope, UnitOfWork

#: Declares the scheme in the OpenAPI file; the key itself is read from the header by `KeyedRoute`.
_bearer = HTTPBearer(auto_error=False, bearerFormat="alignez API key", description="`Authorization: Bearer <key>`")


def services_of(request: Request) -> Services:
    """The process's parts."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


class KeyedRoute(APIRoute):
    """A route that needs a key of a member. Every router but the probes' has it, or a subclass, as its `route_class`.

    Key and role are checked before the body is read: FastAPI reads and parses it before any dependency runs, and nobody
    without a right may cause that work. A route with a parameter `uow` runs in one transaction and one thread call.
    """

    #: The least role that may call.
    needs = Role.MEMBER

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _in_a_transaction(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind the check of the key."""
        handle = super().get_route_handler()

        async def handle_caller(request: Request) -> Response:
            address = "" if request.client is None else request.client.host[:64]
            CALLED_FROM.set(CalledFrom(request.state.request_id, address))
            caller = await _authenticate(request, address)
            if not caller.role.includes(self.needs):
                await _refuse(request, caller, self)
            request.state.caller = caller
            request.state.scope = PLATFORM if self.needs is Role.OPERATOR else caller.tenant_id
            return await handle(request)

        return handle_caller


class GenerationRoute(KeyedRoute):
    """A route for every key."""

    needs = Role.INFERENCE


class AdminRoute(KeyedRoute):
    """A route for a tenant's administrators, on its own rows."""

    needs = Role.ADMIN


class OperatorRoute(KeyedRoute):
    """A route for those who run the deployment; its transactions see all tenants."""

    needs = Role.OPERATOR


async def _authenticate(request: Request, address: str) -> Caller:
    services = services_of(request)
    header = request.headers.get("authorization")
    caller = services.auth.recall(header)
    if caller is None:
        caller = await services.database_threads.run(functools.partial(services.auth.look_up, header, address))
    structlog.contextvars.bind_contextvars(tenant=str(caller.tenant_id))
    return caller


async def _refuse(request: Request, caller: Caller, route: KeyedRoute) -> NoReturn:
    """Refuses a call that needs another role, and notes it once in a while. Raises: Forbidden."""
    services, call = services_of(request), f"{request.method} {route.path}"
    if services.auth.first_in_a_while(("call", caller.key_id, call)):
        await services.database_threads.transaction(
            lambda uow: note_refused_call(uow, caller, call, route.needs), caller.tenant_id
        )
    raise Forbidden(route.needs.value)


def _in_a_transaction(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A route function with a `uow`, as a coroutine that runs it in a transaction, committed before the response.

    FastAPI itself would enter and leave the dependency, run the function and serialise its result in four thread
    calls, with the connection held between them.
    """
    if inspect.iscoroutinefunction(endpoint) or "uow" not in inspect.signature(endpoint).parameters:
        return endpoint

    @functools.wraps(endpoint)
    async def run(*, uow: _Transactions, **arguments: Any) -> Any:
        return await uow.threads.transaction(lambda opened: endpoint(uow=opened, **arguments), uow.scope)

    return run


async def _caller(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


@dataclass(frozen=True)
class _Transactions:
    """What opens a request's transaction, and the rows that it may see."""

    threads: DatabaseThreads
    scope: Scope


async def _transactions(request: Request, services: ServicesDep) -> _Transactions:
    return _Transactions(services.database_threads, request.state.scope)


#: For a parameter named `uow` of a plain function; `KeyedRoute` puts the open transaction in its place.
UowDep = Annotated[UnitOfWork, Depends(_transactions)]


async def _model(services: ServicesDep, _: CallerDep) -> Model:
    return services.require_model()


#: Async, so that it costs no thread.
ModelDep = Annotated[Model, Depends(_model)]
