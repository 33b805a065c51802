"""The version that an end user gets, and what it costs to find one."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from profiles.errors import (
    InvalidSpec,
    NotFound,
    StillAssigned,
)
from profiles.models import Profile
from profiles.service import (
    Caller,
    ResolvedVersion,
    archive_version,
    assign_user,
    delete_profile,
    get_assignment,
    pick_version,
    promote,
    remove_alias,
    remove_assignment,
    resolve_for_user,
    set_alias,
)
from profiles.uow import UnitOfWork


class TestAssignments:
    def test_a_user_gets_the_profiles_default(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        assign_user(uow, caller, "ann", profile.name)
        promote(uow, caller, profile.id, 2)
        found = resolve_for_user(uow, caller, "ann")
        assert isinstance(found, ResolvedVersion)
        assert (found.profile_id, found.number, found.alias) == (profile.id, 2, "default")

    def test_or_a_version_or_an_alias(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        set_alias(uow, caller, profile.id, "beta", version=3)
        assign_user(uow, caller, "ann", profile.id, version=2)
        assign_user(uow, caller, "bob", profile.id, alias="beta")
        ann, bob = (resolve_for_user(uow, caller, user) for user in ("ann", "bob"))
        assert isinstance(ann, ResolvedVersion)
        assert isinstance(bob, ResolvedVersion)
        assert (ann.number, bob.number) == (2, 3)
        assert get_assignment(uow, caller, "ann").version == 2

    def test_the_last_assignment_holds_until_it_is_removed(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        assign_user(uow, caller, "ann", profile.id, version=2)
        assign_user(uow, caller, "ann", profile.id)
        assert get_assignment(uow, caller, "ann").version is None
        remove_assignment(uow, caller, "ann")
        assert resolve_for_user(uow, caller, "ann") is None
        with pytest.raises(NotFound):
            remove_assignment(uow, caller, "ann")

    def test_bad_assignments_are_refused(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        with pytest.raises(InvalidSpec):
            assign_user(uow, caller, "ann", profile.id, alias="default", version=1)
        with pytest.raises(NotFound):
            assign_user(uow, caller, "ann", profile.id, alias="unknown")
        with pytest.raises(NotFound):
            assign_user(uow, caller, "ann", profile.id, version=9)
        for user in ("", " ", "x" * 201, "nul\x00"):
            with pytest.raises(InvalidSpec):
                assign_user(uow, caller, user, profile.id)

    def test_an_alias_that_users_have_cannot_be_removed(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        set_alias(uow, caller, profile.id, "beta", version=2)
        set_alias(uow, caller, profile.id, "gamma", version=2)
        for user in ("ann", "bob"):
            assign_user(uow, caller, user, profile.id, alias="beta")
        with pytest.raises(StillAssigned, match="'beta' is assigned to 2 end users") as caught:
            remove_alias(uow, caller, profile.id, "beta")
        assert caught.value.end_users == 2
        remove_alias(uow, caller, profile.id, "gamma")
        assign_user(uow, caller, "ann", profile.id)
        remove_assignment(uow, caller, "bob")
        remove_alias(uow, caller, profile.id, "beta")

    def test_a_version_that_users_have_cannot_be_archived(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        assign_user(uow, caller, "ann", profile.id, version=2)
        with pytest.raises(StillAssigned, match="version 2 is assigned to 1 end user;"):
            archive_version(uow, caller, profile.id, 2)
        found = resolve_for_user(uow, caller, "ann")
        assert isinstance(found, ResolvedVersion)
        assert found.number == 2
        archive_version(uow, caller, profile.id, 3)
        assign_user(uow, caller, "ann", profile.id, version=1)
        archive_version(uow, caller, profile.id, 2)

    def test_deleting_the_profile_takes_it_from_its_users(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        assign_user(uow, caller, "ann", profile.id)
        delete_profile(uow, caller, profile.id)
        assert resolve_for_user(uow, caller, "ann") is None
        with pytest.raises(NotFound):
            pick_version(uow, caller, profile.name)


class TestCost:
    def test_every_way_to_a_version_is_one_statement_that_reads_no_content(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        set_alias(uow, caller, profile.id, "canary", weights={1: 1.0, 2: 1.0})
        assign_user(uow, caller, "ann", profile.id, version=2)
        assign_user(uow, caller, "bob", profile.id, alias="canary")
        uow.session.flush()
        statements: list[str] = []

        def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
            statements.append(statement)

        connection = uow.session.connection()
        event.listen(connection, "before_cursor_execute", note)
        try:
            pick_version(uow, caller, profile.name)
            pick_version(uow, caller, str(profile.id), version=3)
            pick_version(uow, caller, profile.name, alias="canary", end_user="cid")
            for user in ("ann", "bob", "nobody"):
                resolve_for_user(uow, caller, user)
        finally:
            event.remove(connection, "before_cursor_execute", note)
        assert len(statements) == 6
        assert not [statement for statement in statements if "spec" in statement or "diagnostics" in statement]
