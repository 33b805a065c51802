"""`GET /v1/models`: the valid values of a request's `model` field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from api.deps import CallerDep, GenerationRoute, ModelDep, UowDep
from api.generation.blame import CHOICE, blaming
from api.generation.protocol import MAX_MODEL_NAME
from api.generation.selection import Selection, bound, full_name, model_not_found, profile_in
from api.http.fields import MAX_PAGE, EndUserPath, Text
from api.services import Model
from profiles.models import BaseModelRow, Profile
from profiles.service import (
    DEFAULT_ALIAS,
    Caller,
    aliases_of,
    get_profile,
    list_base_models,
    list_profiles,
    pick_version,
)
from profiles.uow import UnitOfWork

router = APIRouter(prefix="/v1", tags=["generation"], route_class=GenerationRoute)

ModelPath = Annotated[Text, Path(min_length=1, max_length=MAX_MODEL_NAME)]

#: Maximum number of models in the list; OpenAI's protocol has no pages for it.
_MOST = 1000


class ModelCard(BaseModel):
    """A model, or a profile on it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    #: The base model of a profile.
    parent: str | None = None


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/models", summary="List models")
def index(caller: CallerDep, uow: UowDep, model: ModelDep) -> ModelList:
    """The base model, then `base@profile` for each of your profiles that has a default version."""
    return _index(uow, caller, model)


@router.get("/users/{user}/models", summary="List models as an end user")
def user_index(user: EndUserPath, caller: CallerDep, uow: UowDep, model: ModelDep) -> ModelList:
    """The same list, for clients whose base URL is an end user's."""
    bound(Selection(end_user=user, param="user"), caller)
    return _index(uow, caller, model)


@router.get("/models/{name:path}", summary="Show a model")
def show(name: ModelPath, caller: CallerDep, uow: UowDep, model: ModelDep) -> ModelCard:
    """`base`, `base@profile`, `base@profile:alias` or `base@profile#version`; 404 if it cannot be used."""
    return _show(uow, caller, model, name)


@router.get("/users/{user}/models/{name:path}", summary="Show a model as an end user")
def user_show(user: EndUserPath, name: ModelPath, caller: CallerDep, uow: UowDep, model: ModelDep) -> ModelCard:
    """The same, for clients whose base URL is an end user's."""
    bound(Selection(end_user=user, param="user"), caller)
    return _show(uow, caller, model, name)


def _show(uow: UnitOfWork, caller: Caller, model: Model, name: str) -> ModelCard:
    chosen = profile_in(name, model.name)
    if chosen is None:
        return _base_card(model, _base_row(uow, model))
    bound(Selection(profile=chosen.name), caller)
    with blaming("model", CHOICE):
        picked = pick_version(uow, caller, chosen.name, alias=chosen.alias, version=chosen.version)
    profile, row = get_profile(uow, caller, picked.profile_id), _base_row(uow, model)
    if not _fits(profile, row):
        raise model_not_found(name, model.name)
    return _profile_card(model, profile, full_name(name, model.name))


def _index(uow: UnitOfWork, caller: Caller, model: Model) -> ModelList:
    row = _base_row(uow, model)
    cards = [_base_card(model, row)]
    cards += [_profile_card(model, profile, f"{model.name}@{profile.name}") for profile in _usable(uow, caller, row)]
    return ModelList(data=cards[:_MOST])


def _usable(uow: UnitOfWork, caller: Caller, row: BaseModelRow | None) -> Iterator[Profile]:
    """The caller's profiles on this base model with a default version."""
    if caller.end_user is not None and caller.profile_id is None:
        return  # this key may name no profile
    cursor = None
    for _ in range(_MOST // MAX_PAGE):
        page = list_profiles(uow, caller, cursor, MAX_PAGE)
        aliases = aliases_of(uow, page.rows)
        for profile in page.rows:
            if (
                caller.profile_id in (None, profile.id)
                and _fits(profile, row)
                and aliases[profile.id].get(DEFAULT_ALIAS)
            ):
                yield profile
        cursor = page.next
        if cursor is None:
            return


def _fits(profile: Profile, row: BaseModelRow | None) -> bool:
    """True if the profile is of the served base model."""
    return row is not None and profile.base_model_id in (None, row.id)


def _base_row(uow: UnitOfWork, model: Model) -> BaseModelRow | None:
    fingerprint = model.engine.info.fingerprint
    return next((row for row in list_base_models(uow) if row.fingerprint == fingerprint), None)


def _profile_card(model: Model, profile: Profile, name: str) -> ModelCard:
    return ModelCard(id=name, created=int(profile.created_at.timestamp()), owned_by="tenant", parent=model.name)


def _base_card(model: Model, row: BaseModelRow | None) -> ModelCard:
    created = 0 if row is None else int(row.created_at.timestamp())
    return ModelCard(id=model.name, created=created, owned_by="alignez")
