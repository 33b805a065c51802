"""Removal of rows for good. Each method returns the number of removed rows by table."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, Delete, Text, cast, delete, func, select, true, update
from sqlalchemy.dialects.postgresql import JSONPATH
from sqlalchemy.orm import Session

from profiles.models import (
    AliasMove,
    ApiKey,
    Assignment,
    Base,
    Evaluation,
    IdempotencyKey,
    Job,
    JobEvent,
    Profile,
    ProfileAlias,
    ProfileVersion,
)

#: Postgres channel that tells the caches of all processes what to forget.
FORGET_CHANNEL = "alignez_forget"

#: Tables of a version's content; rows that refer to others come first.
_CONTENT = ("version_edits", "query_representations", "preference_pairs", "fit_queries")


class Erasures:
    """Deletes. The transaction's scope is the tenant, or the platform with a tenant's rows named."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def profile(self, profile: Profile) -> dict[str, int]:
        """Everything of an archived profile but its id and its usage, which stays as numbers.

        The row keeps neither name nor description.
        """
        of = self._counts([
            delete(Evaluation).where(Evaluation.version_id.in_(_versions(profile.id))),
            delete(JobEvent).where(JobEvent.job_id.in_(select(Job.id).where(Job.profile_id == profile.id))),
            delete(Job).where(Job.profile_id == profile.id),
            delete(ProfileAlias).where(ProfileAlias.profile_id == profile.id),
            delete(AliasMove).where(AliasMove.profile_id == profile.id),
            delete(Assignment).where(Assignment.profile_id == profile.id),
        ])  # fmt: skip
        of |= self._content(profile.id)
        # Versions refer to their parents, so the children go first.
        of |= self._counts([delete(ProfileVersion).where(ProfileVersion.profile_id == profile.id)])
        of |= self.responses(profile.tenant_id, str(profile.id))
        profile.name, profile.description = "erased", None
        self._session.flush()
        return of

    def keys(self, tenant_id: UUID, *, profile_id: UUID | None = None, end_user: str | None = None) -> list[UUID]:
        """Revokes the keys bound to a profile or an end user, without either all of the tenant; returns their ids.

        They keep neither name nor binding nor last address.
        """
        bound = {"profile_id": profile_id, "end_user": end_user}
        statement = (
            update(ApiKey)
            .where(ApiKey.tenant_id == tenant_id)
            .filter_by(**{name: value for name, value in bound.items() if value is not None})
            .values(
                name="erased",
                profile_id=None,
                end_user=None,
                last_used_from=None,
                revoked_at=func.coalesce(ApiKey.revoked_at, func.now()),
            )
            .returning(ApiKey.id)
        )
        return list(self._session.scalars(statement, execution_options={"synchronize_session": False}))

    def responses(self, tenant_id: UUID | None, text: str) -> dict[str, int]:
        """Stored responses that have a text as a value, at any depth; tenant_id None: of all tenants."""
        wanted = func.jsonb_build_object("text", cast(text, Text))
        within = func.jsonb_path_exists(IdempotencyKey.response, cast("$.** ? (@ == $text)", JSONPATH), wanted)
        mine = true() if tenant_id is None else IdempotencyKey.tenant_id == tenant_id
        return self._counts([delete(IdempotencyKey).where(mine, within)])

    def assignment(self, tenant_id: UUID, end_user: str) -> dict[str, int]:
        """An end user's assignment."""
        mine = (Assignment.tenant_id == tenant_id, Assignment.end_user == end_user)
        return self._counts([delete(Assignment).where(*mine)])

    def tenant_rest(self, tenant_id: UUID) -> dict[str, int]:
        """What a tenant has beside profiles, end users and keys."""
        return self._counts([delete(IdempotencyKey).where(IdempotencyKey.tenant_id == tenant_id)])

    def forget(self, kind: str, ids: Sequence[UUID]) -> None:
        """Tells all processes, once this transaction has committed, to drop a version or a key from their caches."""
        for id_ in ids:
            self._session.execute(select(func.pg_notify(FORGET_CHANNEL, f"{kind} {id_}")))

    def _content(self, profile_id: UUID) -> dict[str, int]:
        """Rows that go with their version."""
        versions = _versions(profile_id)
        tables = [Base.metadata.tables[name] for name in _CONTENT]
        return self._counts([delete(table).where(table.c.version_id.in_(versions)) for table in tables])

    def _counts(self, statements: Sequence[Delete]) -> dict[str, int]:
        counts = {}
        for statement in statements:
            result = self._session.execute(statement, execution_options={"synchronize_session": False})
            counts[str(statement.table)] = int(typing.cast("CursorResult[Any]", result).rowcount)
        return counts


def _versions(profile_id: UUID) -> ColumnElement[UUID]:
    return select(ProfileVersion.id).where(ProfileVersion.profile_id == profile_id).scalar_subquery()
