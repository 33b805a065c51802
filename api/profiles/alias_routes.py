"""Aliases, promotion and rollback of a profile. All of them are audited."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.deps import CallerDep, KeyedRoute, UowDep
from api.http.fields import AliasPath, ProfilePath
from api.http.idempotency import IdempotencyHeader, once
from api.http.paging import Listed
from api.profiles.alias_schemas import AliasRead, AliasTarget, Promotion
from profiles.service import DEFAULT_ALIAS, list_aliases, promote, remove_alias, roll_back, set_alias
from profiles.service.profiles import parse_number

router = APIRouter(prefix="/v1/profiles/{profile}", tags=["aliases"], route_class=KeyedRoute)


@router.get("/aliases", summary="List aliases")
def index(profile: ProfilePath, caller: CallerDep, uow: UowDep) -> Listed[AliasRead]:
    """Every alias of the profile and what it points to."""
    found = list_aliases(uow, caller, profile)
    return Listed(data=[AliasRead.of(alias, targets) for alias, targets in found.items()], next=None)


@router.put("/aliases/{alias}", summary="Point an alias")
def put(profile: ProfilePath, alias: AliasPath, body: AliasTarget, caller: CallerDep, uow: UowDep) -> AliasRead:
    """To one version, or to several by weight: a canary, on which each end user always stays on the same side.

    The default takes a weak version with `force` only, else 409 `version_weak`; other aliases take any.
    """
    weights = None
    if body.weights is not None:
        weights = {parse_number(number): weight for number, weight in body.weights.items()}
    return AliasRead.of(alias, set_alias(uow, caller, profile, alias, body.version, weights, force=body.force))


@router.delete("/aliases/{alias}", status_code=204, summary="Remove an alias")
def delete(profile: ProfilePath, alias: AliasPath, caller: CallerDep, uow: UowDep) -> Response:
    """The default stays as long as the profile; 409 while end users are assigned to the alias."""
    remove_alias(uow, caller, profile, alias)
    return Response(status_code=204)


@router.post("/promote", summary="Promote a version", response_model=AliasRead)
def promote_version(
    profile: ProfilePath,
    body: Promotion,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """Makes a ready version the default; a weak one with `force` only, else 409 `version_weak` with the reasons."""

    def make() -> AliasRead:
        row = promote(uow, caller, profile, body.version, force=body.force)
        return AliasRead.of(DEFAULT_ALIAS, {row.number: 1.0})

    return once(uow, caller, idempotency_key, request, body, 200, make)


@router.post("/rollback", summary="Roll back", response_model=AliasRead)
def rollback(
    profile: ProfilePath, request: Request, caller: CallerDep, uow: UowDep, idempotency_key: IdempotencyHeader = None
) -> JSONResponse:
    """Restores the previous default version; another call goes one further back."""

    def make() -> AliasRead:
        return AliasRead.of(DEFAULT_ALIAS, roll_back(uow, caller, profile))

    return once(uow, caller, idempotency_key, request, None, 200, make)
