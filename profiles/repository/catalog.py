"""Base models, profiles, versions, aliases and assignments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from profiles.models import AliasMove, Assignment, BaseModelRow, Profile, ProfileAlias, ProfileVersion, VersionState
from profiles.models.base import new_id
from profiles.paging import Page, fetch_page


class Catalog:
    """Queries on profiles, versions, aliases and assignments. Reads for a caller take the tenant."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # Base models

    def upsert_base_model(self, values: Mapping[str, Any]) -> BaseModelRow:
        """The row of this fingerprint, with updated facts and `seen_at`."""
        statement = insert(BaseModelRow).values(id=new_id(), **values)
        fresh = {name: statement.excluded[name] for name in values if name != "fingerprint"}
        statement = statement.on_conflict_do_update(
            index_elements=["fingerprint"], set_={**fresh, "seen_at": func.clock_timestamp()}
        )
        returning = statement.returning(BaseModelRow)
        return self._session.scalars(returning, execution_options={"populate_existing": True}).one()

    def base_model(self, model_id: UUID) -> BaseModelRow | None:
        return self._session.get(BaseModelRow, model_id)

    def base_model_by_name(self, name: str | None) -> BaseModelRow | None:
        """The last loaded model of this name; without a name, of all."""
        statement = select(BaseModelRow).order_by(BaseModelRow.seen_at.desc(), BaseModelRow.id.desc()).limit(1)
        if name is not None:
            statement = statement.where(BaseModelRow.name == name)
        return self._session.scalars(statement).one_or_none()

    def base_models(self) -> list[BaseModelRow]:
        return list(self._session.scalars(select(BaseModelRow).order_by(BaseModelRow.seen_at.desc())))

    # Profiles

    def add_profile(self, tenant_id: UUID, name: str, description: str | None, model: UUID | None) -> Profile | None:
        """The new profile, or None if a live one has the name (also in a transaction that commits first)."""
        statement = (
            insert(Profile)
            .values(id=new_id(), tenant_id=tenant_id, name=name, description=description, base_model_id=model)
            .on_conflict_do_nothing(index_elements=["tenant_id", "name"], index_where=Profile.archived_at.is_(None))
            .returning(Profile)
        )
        return self._session.scalars(statement).one_or_none()

    def profile(self, tenant_id: UUID, ref: UUID | str, *, lock: bool = False) -> Profile | None:
        """The live profile of this id or name. lock: other transactions cannot change its versions and aliases."""
        by = Profile.id == ref if isinstance(ref, UUID) else Profile.name == ref
        statement = select(Profile).where(Profile.tenant_id == tenant_id, by, Profile.archived_at.is_(None))
        if lock:
            statement = statement.with_for_update(key_share=True).execution_options(populate_existing=True)
        return self._session.scalars(statement).one_or_none()

    def any_profile(self, tenant_id: UUID, profile_id: UUID) -> Profile | None:
        """The profile of this id, also a deleted one, locked as `profile` locks it."""
        statement = select(Profile).where(Profile.tenant_id == tenant_id, Profile.id == profile_id)
        statement = statement.with_for_update(key_share=True)
        return self._session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()

    def all_ids(self, tenant_id: UUID) -> list[UUID]:
        """Ids of the tenant's profiles, with the deleted ones, in order."""
        return list(
            self._session.scalars(select(Profile.id).where(Profile.tenant_id == tenant_id).order_by(Profile.id))
        )

    def version_ids(self, profile_id: UUID) -> list[UUID]:
        """Ids of all versions of a profile."""
        return list(self._session.scalars(select(ProfileVersion.id).where(ProfileVersion.profile_id == profile_id)))

    def assigned(self, tenant_id: UUID) -> list[str]:
        """The tenant's end users who have a profile."""
        return list(self._session.scalars(select(Assignment.end_user).where(Assignment.tenant_id == tenant_id)))

    def profiles(self, tenant_id: UUID | None, cursor: str | None, limit: int) -> Page[Profile]:
        """Live profiles of a tenant; None: of all tenants (for operators)."""
        statement = select(Profile).where(Profile.archived_at.is_(None))
        if tenant_id is not None:
            statement = statement.where(Profile.tenant_id == tenant_id)
        return fetch_page(self._session, statement, Profile.id, cursor, limit)

    # Versions

    def add_version(self, version: ProfileVersion) -> None:
        """Gives the version the profile's next number; the profile must be locked or new."""
        latest = select(func.max(ProfileVersion.number)).where(ProfileVersion.profile_id == version.profile_id)
        version.number = (self._session.scalars(latest).one() or 0) + 1
        self._session.add(version)
        self._session.flush()

    def version(self, profile_id: UUID, number: int) -> ProfileVersion | None:
        statement = select(ProfileVersion).where(
            ProfileVersion.profile_id == profile_id, ProfileVersion.number == number
        )
        return self._session.scalars(statement).one_or_none()

    def version_by_id(self, version_id: UUID) -> ProfileVersion | None:
        return self._session.get(ProfileVersion, version_id)

    def latest_version(self, profile_id: UUID) -> ProfileVersion | None:
        statement = (
            select(ProfileVersion)
            .where(ProfileVersion.profile_id == profile_id)
            .order_by(ProfileVersion.number.desc())
            .limit(1)
        )
        return self._session.scalars(statement).one_or_none()

    def latest_ready(self, profile_id: UUID) -> tuple[UUID, int, list[Any]] | None:
        """(id, number, reasons) of the highest ready version. Reads few columns, because requests wait for it."""
        statement = (
            select(ProfileVersion.id, ProfileVersion.number, ProfileVersion.quality_reasons)
            .where(ProfileVersion.profile_id == profile_id, ProfileVersion.state == VersionState.READY)
            .order_by(ProfileVersion.number.desc())
            .limit(1)
        )
        row = self._session.execute(statement).one_or_none()
        return None if row is None else (row.id, row.number, row.quality_reasons or [])

    def versions(self, profile_id: UUID, cursor: str | None, limit: int) -> Page[ProfileVersion]:
        statement = select(ProfileVersion).where(ProfileVersion.profile_id == profile_id)
        return fetch_page(self._session, statement, ProfileVersion.number, cursor, limit)

    def version_numbers(self, version_ids: list[UUID]) -> dict[UUID, int]:
        statement = select(ProfileVersion.id, ProfileVersion.number).where(ProfileVersion.id.in_(version_ids))
        return {row.id: row.number for row in self._session.execute(statement)}

    def ready_numbers(self, profile_id: UUID, numbers: list[int]) -> dict[int, UUID]:
        """Number → id of the ready ones among these versions."""
        statement = select(ProfileVersion.number, ProfileVersion.id).where(
            ProfileVersion.profile_id == profile_id,
            ProfileVersion.number.in_(numbers),
            ProfileVersion.state == VersionState.READY,
        )
        return {row.number: row.id for row in self._session.execute(statement)}

    def archive_versions(self, profile_id: UUID) -> None:
        """Archives the ready versions and fails the pending ones."""
        for before, after in ((VersionState.READY, VersionState.ARCHIVED), (VersionState.PENDING, VersionState.FAILED)):
            statement = (
                update(ProfileVersion)
                .where(ProfileVersion.profile_id == profile_id, ProfileVersion.state == before)
                .values(state=after, archived_at=func.now())
            )
            self._session.execute(statement, execution_options={"synchronize_session": "fetch"})

    # Aliases

    def alias_targets(self, profile_id: UUID, alias: str) -> list[tuple[ProfileVersion, float]]:
        """(version, weight) pairs of an alias by version number; empty if there is no such alias."""
        statement = (
            select(ProfileVersion, ProfileAlias.weight)
            .join(ProfileAlias, ProfileAlias.version_id == ProfileVersion.id)
            .where(ProfileAlias.profile_id == profile_id, ProfileAlias.alias == alias)
            .order_by(ProfileVersion.number)
        )
        return [(row[0], row[1]) for row in self._session.execute(statement)]

    def aliases(self, profile_ids: list[UUID]) -> dict[UUID, dict[str, dict[int, float]]]:
        """Profile → alias → version number → weight."""
        statement = (
            select(ProfileAlias.profile_id, ProfileAlias.alias, ProfileVersion.number, ProfileAlias.weight)
            .join(ProfileVersion, ProfileAlias.version_id == ProfileVersion.id)
            .where(ProfileAlias.profile_id.in_(profile_ids))
            .order_by(ProfileAlias.alias, ProfileVersion.number)
        )
        found: dict[UUID, dict[str, dict[int, float]]] = {profile_id: {} for profile_id in profile_ids}
        for row in self._session.execute(statement):
            found[row.profile_id].setdefault(row.alias, {})[row.number] = row.weight
        return found

    def set_alias(self, profile: Profile, alias: str, targets: Mapping[UUID, float]) -> None:
        """Replaces the alias's targets (version id → weight); none removes the alias. The profile must be locked."""
        self._session.execute(
            delete(ProfileAlias).where(ProfileAlias.profile_id == profile.id, ProfileAlias.alias == alias),
            execution_options={"synchronize_session": "fetch"},
        )
        for version_id, weight in targets.items():
            row = ProfileAlias(
                profile_id=profile.id, alias=alias, version_id=version_id, tenant_id=profile.tenant_id, weight=weight
            )
            self._session.add(row)
        self._session.flush()

    def add_move(self, profile: Profile, alias: str, numbers: Mapping[int, float], key_id: UUID | None) -> None:
        """Appends to the alias's history."""
        targets = {str(number): weight for number, weight in numbers.items()}
        move = AliasMove(
            tenant_id=profile.tenant_id, profile_id=profile.id, alias=alias, targets=targets, key_id=key_id
        )
        self._session.add(move)
        self._session.flush()

    def standing_moves(self, profile_id: UUID, alias: str, limit: int) -> list[AliasMove]:
        """Moves that were not undone, latest first."""
        statement = (
            select(AliasMove)
            .where(AliasMove.profile_id == profile_id, AliasMove.alias == alias, AliasMove.undone_at.is_(None))
            .order_by(AliasMove.id.desc())
            .limit(limit)
        )
        return list(self._session.scalars(statement))

    def undo_move(self, move: AliasMove) -> None:
        move.undone_at = func.now()
        self._session.flush()

    # Assignments

    def assignment(self, tenant_id: UUID, end_user: str) -> Assignment | None:
        return self._session.get(Assignment, (tenant_id, end_user))

    def assign(self, profile: Profile, end_user: str, alias: str | None, version_id: UUID | None) -> Assignment:
        """Creates or replaces the end user's assignment."""
        statement = insert(Assignment).values(
            tenant_id=profile.tenant_id, end_user=end_user, profile_id=profile.id, alias=alias, version_id=version_id
        )
        fresh = {name: statement.excluded[name] for name in ("profile_id", "alias", "version_id")}
        returning = statement.on_conflict_do_update(
            index_elements=["tenant_id", "end_user"], set_={**fresh, "updated_at": func.now()}
        ).returning(Assignment)
        return self._session.scalars(returning, execution_options={"populate_existing": True}).one()

    def assigned_users(self, profile_id: UUID, *, alias: str | None = None, version_id: UUID | None = None) -> int:
        """Number of end users assigned to this alias, or to this version, of a profile."""
        pointer = Assignment.alias == alias if alias is not None else Assignment.version_id == version_id
        statement = select(func.count()).select_from(Assignment).where(Assignment.profile_id == profile_id, pointer)
        return self._session.scalars(statement).one()

    def remove_assignment(self, tenant_id: UUID, end_user: str) -> bool:
        statement = (
            delete(Assignment)
            .where(Assignment.tenant_id == tenant_id, Assignment.end_user == end_user)
            .returning(Assignment.end_user)
        )
        return self._session.scalars(statement).one_or_none() is not None

    def remove_assignments_of(self, profile_id: UUID) -> int:
        statement = delete(Assignment).where(Assignment.profile_id == profile_id).returning(Assignment.end_user)
        return len(self._session.scalars(statement).all())
