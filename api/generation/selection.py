"""The profile that a request asks for: by its model name, its `profile` field, or its end user's assignment."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from api.generation.protocol import BASE, ProfileChoice, SamplingFields
from api.http.errors import ApiError
from api.http.fields import ALIAS_PATTERN, MAX_ID, MAX_INTEGER
from profiles.service import Caller

_NUMBER = re.compile(r"[0-9]{1,10}")
_ALIAS = re.compile(ALIAS_PATTERN)


@dataclass(frozen=True)
class Selection:
    """The profile, version and strength that a request asks for. All None: the bare base model.

    With `profile` None and an `end_user`, the user's assignment decides. With both, the user only decides which side
    of a canary they are on.

    Args:
        param: the request's field that made the choice, for errors about it.
    """

    profile: str | None = None
    alias: str | None = None
    version: int | None = None
    strength: float | None = None
    end_user: str | None = None
    param: str = "model"

    @property
    def is_bare(self) -> bool:
        """True if nothing has to be looked up."""
        return self.profile is None and self.end_user is None


def select(body: SamplingFields, base_name: str, caller: Caller, path_user: str | None = None) -> Selection:
    """The request's selection; the more explicit place wins: `profile` field, model name, end user, bound key.

    Args:
        base_name: the served base model.
        caller: a key that is bound to a profile or an end user selects it by itself.
        path_user: the end user of `/v1/users/{user}/…`; it must agree with the body's `user`, if that is given.
    Raises: ApiError: 404 for a model that is not served, 400 for a malformed or contradictory choice, 403 for what the
        key is not bound to.
    """
    named = profile_in(body.model, base_name)
    if path_user is not None and body.user not in (None, path_user):
        raise ApiError(400, "conflicting_user", f"user {body.user!r} is not the path's {path_user!r}", param="user")
    end_user = path_user if path_user is not None else body.user or None
    chosen = body.profile
    if chosen and named and (named.name != chosen.name or (named.alias or named.version) is not None):
        raise ApiError(400, "conflicting_profile", "give the profile in model or in profile, not both", param="profile")
    choice = chosen or named
    if choice is None:
        return bound(Selection(end_user=end_user, param="user"), caller)
    param = "model" if chosen is None else "profile"
    return bound(Selection(choice.name, choice.alias, choice.version, choice.strength, end_user, param), caller)


def bound(selection: Selection, caller: Caller) -> Selection:
    """The selection within the bounds of the caller's key. Its profile is checked when it has been found.

    Raises: ApiError: 403: another end user than the key's, or a profile that the key's end user is not known to have.
    """
    if caller.end_user is not None:
        if selection.end_user not in (None, caller.end_user):
            raise ApiError(403, "forbidden", "the key is bound to another end user", param="user")
        if selection.profile is not None and caller.profile_id is None:
            raise ApiError(
                403, "forbidden", "the key is bound to an end user, whose assigned profile answers; name no profile",
                param=selection.param,
            )  # fmt: skip
        selection = replace(selection, end_user=caller.end_user)
    if caller.profile_id is not None and selection.profile is None:
        selection = replace(selection, profile=str(caller.profile_id))
    return selection


def profile_in(model: str, base_name: str) -> ProfileChoice | None:
    """The profile that a model name ends with; None for the base model alone.

    Raises: ApiError: 404 for a model that is not served, 400 for a malformed choice.
    """
    base, rest = _split(model, base_name)
    if base not in (base_name, BASE):
        raise model_not_found(model, base_name)
    return _parse(rest[1:]) if rest else None


def full_name(model: str, base_name: str) -> str:
    """The model name of a reply: the served model by its name, and the profile as the request wrote it."""
    return base_name + _split(model, base_name)[1]


def _split(model: str, base_name: str) -> tuple[str, str]:
    # Not at the first '@': a base model's own name may hold one.
    for name in (base_name, BASE):
        if model.startswith(f"{name}@"):
            return name, model[len(name) :]
    return model, ""


def model_not_found(name: str, base_name: str) -> ApiError:
    """OpenAI's error for a model that does not exist."""
    return ApiError(
        404,
        "model_not_found",
        f"The model {name!r} does not exist here; the base model is {base_name!r}, "
        f"a profile on it is '{base_name}@<profile>'",
        param="model",
    )


def _parse(rest: str) -> ProfileChoice:
    """`profile`, `profile:alias` or `profile#version`.

    Raises: ApiError: 400, whatever `ProfileChoice` would refuse; its own error is a body's and would be a 500 here.
    """
    name, colon, alias = rest.partition(":")
    number = ""
    sharp = ""
    if not colon:
        name, sharp, number = rest.partition("#")
    if not name:
        raise ApiError(400, "invalid_model", "a profile's name must follow the '@'", param="model")
    if len(name) > MAX_ID:
        raise ApiError(400, "invalid_model", f"the profile's name is longer than {MAX_ID} characters", param="model")
    if colon:
        if not _ALIAS.fullmatch(alias):
            raise ApiError(400, "invalid_model", "after ':' belongs an alias, as in 'base@profile:beta'", param="model")
        return ProfileChoice(name=name, alias=alias)
    if sharp:
        if not _NUMBER.fullmatch(number) or not 1 <= int(number) <= MAX_INTEGER:
            raise ApiError(
                400, "invalid_model", "after '#' belongs a version number, as in 'base@profile#3'", param="model"
            )
        return ProfileChoice(name=name, version=int(number))
    return ProfileChoice(name=name)
