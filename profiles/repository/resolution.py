"""Resolves the profile, alias, version or end user of a request to a version, with one statement per request.

The statements select columns, because a version row may hold megabytes of spec and diagnostics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, and_, bindparam, case, select
from sqlalchemy.orm import Session

from profiles.models import Assignment, Profile, ProfileAlias, ProfileVersion, VersionState

_PROFILE, _VERSION = Profile.__table__.c, ProfileVersion.__table__.c
_ALIAS, _ASSIGNMENT = ProfileAlias.__table__.c, Assignment.__table__.c


@dataclass(frozen=True)
class Target:
    """A version that a pointer selects, and its share of the requests."""

    version_id: UUID
    number: int
    state: VersionState
    sha256: str | None
    weight: float


@dataclass(frozen=True)
class Route:
    """A live profile and the versions that a pointer into it selects.

    Args:
        alias: None if the request names a version.
        targets: by version number; empty when the alias or the version does not exist.
    """

    profile_id: UUID
    profile_name: str
    alias: str | None
    targets: tuple[Target, ...]


class Routes:
    """Queries for a caller; each takes the tenant."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def by_alias(self, tenant_id: UUID, profile: UUID | str, alias: str) -> Route | None:
        """The route; None if there is no such live profile."""
        rows = self._rows(_BY_ALIAS[isinstance(profile, str)], tenant=tenant_id, profile=profile, alias=alias)
        return _route(rows, alias) if rows else None

    def by_number(self, tenant_id: UUID, profile: UUID | str, number: int) -> Route | None:
        """The route; None if there is no such live profile."""
        rows = self._rows(_BY_NUMBER[isinstance(profile, str)], tenant=tenant_id, profile=profile, number=number)
        return _route(rows, None) if rows else None

    def of_user(self, tenant_id: UUID, end_user: str, default_alias: str) -> Route | None:
        """The route of the end user's assignment; None if there is none or its profile was deleted."""
        rows = self._rows(_OF_USER, tenant=tenant_id, end_user=end_user, default_alias=default_alias)
        return _route(rows, None if rows[0].pinned else rows[0].alias) if rows else None

    def _rows(self, statement: Select[Any], **values: object) -> Sequence[Any]:
        return self._session.execute(statement, values).all()


def _by_alias(by_name: bool) -> Select[Any]:
    pointer = and_(_ALIAS.profile_id == _PROFILE.id, _ALIAS.alias == bindparam("alias"))
    return (
        select(*_FOUND, _ALIAS.weight)
        .select_from(Profile.__table__)
        .outerjoin(ProfileAlias.__table__, pointer)
        .outerjoin(ProfileVersion.__table__, _VERSION.id == _ALIAS.version_id)
        .where(*_live(by_name))
        .order_by(_VERSION.number)
    )


def _by_number(by_name: bool) -> Select[Any]:
    named = and_(_VERSION.profile_id == _PROFILE.id, _VERSION.number == bindparam("number"))
    return (
        select(*_FOUND).select_from(Profile.__table__).outerjoin(ProfileVersion.__table__, named).where(*_live(by_name))
    )


def _of_user() -> Select[Any]:
    # CASE and not COALESCE: under row-level security Postgres searches an index only for what it knows to leak nothing,
    # and does not know that of COALESCE.
    named = case((_ASSIGNMENT.alias.is_not(None), _ASSIGNMENT.alias), else_=bindparam("default_alias", type_=Text))
    version = case((_ASSIGNMENT.version_id.is_not(None), _ASSIGNMENT.version_id), else_=_ALIAS.version_id)
    pointer = and_(_ALIAS.profile_id == _PROFILE.id, _ALIAS.alias == named, _ASSIGNMENT.version_id.is_(None))
    return (
        select(*_FOUND, _ALIAS.weight, _ASSIGNMENT.version_id.label("pinned"), named.label("alias"))
        .select_from(Assignment.__table__)
        .join(Profile.__table__, _PROFILE.id == _ASSIGNMENT.profile_id)
        .outerjoin(ProfileAlias.__table__, pointer)
        .outerjoin(ProfileVersion.__table__, _VERSION.id == version)
        .where(
            _ASSIGNMENT.tenant_id == bindparam("tenant"),
            _ASSIGNMENT.end_user == bindparam("end_user"),
            _PROFILE.tenant_id == bindparam("tenant"),
            _PROFILE.archived_at.is_(None),
        )
        .order_by(_VERSION.number)
    )


def _live(by_name: bool) -> list[ColumnElement[bool]]:
    named = (_PROFILE.name if by_name else _PROFILE.id) == bindparam("profile")
    return [_PROFILE.tenant_id == bindparam("tenant"), named, _PROFILE.archived_at.is_(None)]


_FOUND: list[ColumnElement[Any]] = [
    _PROFILE.id.label("profile_id"), _PROFILE.name,
    _VERSION.id.label("version_id"), _VERSION.number, _VERSION.state, _VERSION.sha256,
]  # fmt: skip
# Built once, because building a statement takes longer than sending it. Key: True for a profile given by name.
_BY_ALIAS = {by_name: _by_alias(by_name) for by_name in (False, True)}
_BY_NUMBER = {by_name: _by_number(by_name) for by_name in (False, True)}
_OF_USER = _of_user()


def _route(rows: Sequence[Any], alias: str | None) -> Route:
    targets = tuple(
        Target(row.version_id, row.number, row.state, row.sha256, getattr(row, "weight", None) or 1.0)
        for row in rows
        if row.version_id is not None
    )
    return Route(rows[0].profile_id, rows[0].name, alias, targets)
