"""Which profile a request asks for: its model name, its `profile` field, or its end user's assignment."""

from __future__ import annotations

import re
from dataclasses import dataclass

from api.generation.protocol import BASE, ProfileChoice, SamplingFields
from api.http.errors import ApiError
from api.http.fields import ALIAS_PATTERN, MAX_ID, MAX_INTEGER

_NUMBER = re.compile(r"[0-9]{1,10}")
_ALIAS = re.compile(ALIAS_PATTERN)


@dataclass(frozen=True)
class Selection:
    """What to personalise with. All None: the bare base model.

    With `profile` None and an `end_user`, the user's assignment decides. With both, the user only decides which side
    of a canary they are on.
    """

    profile: str | None = None
    alias: str | None = None
    version: int | None = None
    strength: float | None = None
    end_user: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether nothing has to be looked up."""
        return self.profile is None and self.end_user is None


def select(body: SamplingFields, base_name: str, path_user: str | None = None) -> Selection:
    """The request's selection; the more explicit place wins: `profile` field, model name, end user.

    Args:
        base_name: the served base model.
        path_user: the end user of `/v1/users/{user}/…`; it must agree with the body's `user`, if that is given.
    Raises: ApiError: 404 for a model that is not served, 400 for a malformed or contradictory choice.
    """
    base, at, rest = body.model, "", ""
    # Not at the first '@': a base model's own name may hold one.
    for name in (base_name, BASE):
        if body.model.startswith(f"{name}@"):
            base, at, rest = name, "@", body.model[len(name) + 1 :]
    if base not in (base_name, BASE):
        raise model_not_found(body.model, base_name)
    if path_user is not None and body.user not in (None, path_user):
        raise ApiError(400, "conflicting_user", f"user {body.user!r} is not the path's {path_user!r}", param="user")
    end_user = path_user if path_user is not None else body.user or None
    named = _parse(rest) if at else None
    chosen = body.profile
    if chosen is not None and named is not None:
        if named.name != chosen.name or (named.alias or named.version) is not None:
            raise ApiError(
                400, "conflicting_profile", "give the profile in model or in profile, not both", param="profile"
            )
        named = chosen
    choice = chosen or named
    if choice is None:
        return Selection(end_user=end_user)
    return Selection(choice.name, choice.alias, choice.version, choice.strength, end_user)


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
