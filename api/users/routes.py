"""`/v1/users/{user}/profile`: what an end user's requests are answered with."""

from __future__ import annotations

from typing import Any, Self

from fastapi import APIRouter, Response
from pydantic import BaseModel, model_validator

from api.accounts.receipts import ReceiptRead
from api.deps import CallerDep, KeyedRoute, UowDep
from api.http.fields import AliasName, Body, EndUserPath, ProfileRef, VersionNumber, field_error
from profiles.service import (
    AssignedProfile,
    assign_user,
    erase_user,
    export_user,
    get_assignment,
    remove_assignment,
)

router = APIRouter(prefix="/v1/users", tags=["users"], route_class=KeyedRoute)


class AssignmentBody(Body):
    """A profile by its default, by another alias, or by one version."""

    profile: ProfileRef
    alias: AliasName | None = None
    version: VersionNumber | None = None

    @model_validator(mode="after")
    def _one_pointer(self) -> Self:
        if self.alias is not None and self.version is not None:
            raise field_error("alias", "give alias or version, not both")
        return self


class AssignedRef(BaseModel):
    """The profile."""

    id: str
    name: str


class AssignmentRead(BaseModel):
    """The profile of an end user; with neither alias nor version, its default."""

    user: str
    profile: AssignedRef
    alias: str | None
    version: int | None

    @classmethod
    def of(cls, found: AssignedProfile) -> Self:
        """The rows as a reply."""
        return cls(
            user=found.assignment.end_user,
            profile=AssignedRef(id=str(found.profile.id), name=found.profile.name),
            alias=found.assignment.alias,
            version=found.version,
        )


@router.put("/{user}/profile", summary="Assign a profile to an end user")
def assign(user: EndUserPath, body: AssignmentBody, caller: CallerDep, uow: UowDep) -> AssignmentRead:
    """Replaces the one before. Requests that name this user (in `user` or in the path) take on the profile."""
    return AssignmentRead.of(assign_user(uow, caller, user, body.profile, alias=body.alias, version=body.version))


@router.get("/{user}/profile", summary="Show an end user's profile")
def show(user: EndUserPath, caller: CallerDep, uow: UowDep) -> AssignmentRead:
    """404 when the user has none."""
    return AssignmentRead.of(get_assignment(uow, caller, user))


@router.delete("/{user}", summary="Erase an end user")
def erase(user: EndUserPath, caller: CallerDep, uow: UowDep) -> ReceiptRead:
    """Removes their assignment and stored responses for good, and revokes the keys bound to them.

    Erase the profiles that were made from their texts too: only you know which these are.
    """
    return ReceiptRead.model_validate(erase_user(uow, caller, user))


@router.get("/{user}/export", summary="Export an end user's data")
def export(user: EndUserPath, caller: CallerDep, uow: UowDep) -> dict[str, Any]:
    """Everything that is stored of them: assignment, keys, audit entries."""
    return export_user(uow, caller, user)


@router.delete("/{user}/profile", status_code=204, summary="Take the profile from an end user")
def remove(user: EndUserPath, caller: CallerDep, uow: UowDep) -> Response:
    """Their requests go to the bare base model from now on."""
    remove_assignment(uow, caller, user)
    return Response(status_code=204)
