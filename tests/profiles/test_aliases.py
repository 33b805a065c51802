"""Promotion, rollback and aliases decide the version of a request, and each move is audited."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from profiles.errors import (
    InvalidSpec,
    NoDefaultVersion,
    NotFound,
    NothingToRollBackTo,
    VersionNotReady,
    VersionWeak,
)
from profiles.models import Profile
from profiles.service import (
    Caller,
    ResolvedVersion,
    Unserved,
    archive_version,
    assign_user,
    audit_entries,
    delete_profile,
    list_aliases,
    pick_version,
    promote,
    remove_alias,
    resolve_for_user,
    roll_back,
    set_alias,
)
from profiles.uow import UnitOfWork
from tests.factories import Factory

USERS = [f"user-{i}" for i in range(2000)]


def default_of(uow: UnitOfWork, caller: Caller, profile: Profile) -> dict[int, float]:
    return list_aliases(uow, caller, profile.id)["default"]


class TestPromote:
    def test_moves_the_default(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        assert promote(uow, caller, profile.id, 2).number == 2
        assert default_of(uow, caller, profile) == {2: 1.0}
        assert pick_version(uow, caller, profile.name).number == 2

    def test_a_version_that_is_not_ready_is_refused_with_its_job(
        self, uow: UnitOfWork, make: Factory, caller: Caller, profile: Profile
    ) -> None:
        pending = make.fit(caller, profile=profile.id)
        with pytest.raises(VersionNotReady) as caught:
            promote(uow, caller, profile.id, pending.version.number)
        assert (caught.value.state, caught.value.job_id) == ("pending", pending.job.id)
        assert default_of(uow, caller, profile) == {1: 1.0}

    @pytest.mark.parametrize("number", [0, -1, 4, 2**31, 2**70])
    def test_a_number_that_does_not_exist_is_not_found(
        self, uow: UnitOfWork, caller: Caller, profile: Profile, number: int
    ) -> None:
        with pytest.raises(NotFound):
            promote(uow, caller, profile.id, number)


#: What a worker hands over for a version that did not prove itself.
WEAK = {"quality": "weak", "reasons": ("net win over the bare model is -0.10",)}


class TestWeak:
    def test_is_never_the_default_by_itself_even_when_asked_for(
        self, uow: UnitOfWork, make: Factory, caller: Caller, profile: Profile
    ) -> None:
        make.ready(caller, profile=profile.id, promote=True, changes=WEAK)
        assert default_of(uow, caller, profile) == {1: 1.0}
        first = make.ready(caller, changes=WEAK)
        assert list_aliases(uow, caller, first.profile.id) == {}
        make.ready(caller, profile=first.profile.id)
        assert default_of(uow, caller, first.profile) == {2: 1.0}

    def test_can_be_promoted_by_force_which_is_audited(
        self, uow: UnitOfWork, make: Factory, caller: Caller, profile: Profile
    ) -> None:
        make.ready(caller, profile=profile.id, changes=WEAK)
        with pytest.raises(VersionWeak) as caught:
            promote(uow, caller, profile.id, 4)
        assert (caught.value.number, caught.value.reasons) == (4, WEAK["reasons"])
        assert default_of(uow, caller, profile) == {1: 1.0}
        promote(uow, caller, profile.id, 4, force=True)
        assert pick_version(uow, caller, profile.id).number == 4
        [entry] = [e for e in audit_entries(uow, caller.tenant_id).rows if e.details.get("force")]
        assert (entry.action, entry.details) == ("profile.promote", {"version": 4, "force": True})
        assert roll_back(uow, caller, profile.id) == {1: 1.0}

    def test_the_default_alias_needs_force_too_and_a_canary_does_not(
        self, uow: UnitOfWork, make: Factory, caller: Caller, profile: Profile
    ) -> None:
        make.ready(caller, profile=profile.id, changes=WEAK)
        for version, weights in ((4, None), (None, {1: 9.0, 4: 1.0})):
            with pytest.raises(VersionWeak):
                set_alias(uow, caller, profile.id, "default", version, weights)
        set_alias(uow, caller, profile.id, "canary", weights={1: 9.0, 4: 1.0})
        set_alias(uow, caller, profile.id, "default", version=4, force=True)
        assert default_of(uow, caller, profile) == {4: 1.0}

    def test_without_a_default_the_reasons_are_told(self, uow: UnitOfWork, make: Factory, caller: Caller) -> None:
        first = make.ready(caller, changes={"quality": "weak", "reasons": ("old",)})
        second = make.ready(caller, profile=first.profile.id, changes=WEAK)
        make.fit(caller, profile=first.profile.id)  # under way
        with pytest.raises(NoDefaultVersion) as caught:
            pick_version(uow, caller, first.profile.id)
        assert (caught.value.number, caught.value.reasons) == (2, WEAK["reasons"])
        assert caught.value.job_id == second.job.id
        assert pick_version(uow, caller, first.profile.id, version=2).number == 2
        with pytest.raises(NotFound):
            pick_version(uow, caller, first.profile.id, alias="beta")

    def test_an_assigned_user_is_unserved_and_no_error(self, uow: UnitOfWork, make: Factory, caller: Caller) -> None:
        request = make.ready(caller, changes=WEAK)
        assign_user(uow, caller, "ann", request.profile.id)
        assign_user(uow, caller, "bob", request.profile.id, version=1)
        assert resolve_for_user(uow, caller, "ann") == Unserved(
            request.profile.id, request.profile.name, "no_default_version"
        )
        assert isinstance(resolve_for_user(uow, caller, "bob"), ResolvedVersion)
        promote(uow, caller, request.profile.id, 1, force=True)
        assert isinstance(resolve_for_user(uow, caller, "ann"), ResolvedVersion)


class TestRollBack:
    def test_goes_back_to_the_version_before(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        promote(uow, caller, profile.id, 3)
        assert roll_back(uow, caller, profile.id) == {1: 1.0}
        assert default_of(uow, caller, profile) == {1: 1.0}

    def test_a_second_one_goes_further_back_and_not_forward_again(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        for number in (2, 3, 2):
            promote(uow, caller, profile.id, number)
        assert [roll_back(uow, caller, profile.id) for _ in range(3)] == [{3: 1.0}, {2: 1.0}, {1: 1.0}]
        with pytest.raises(NothingToRollBackTo):
            roll_back(uow, caller, profile.id)

    def test_after_a_rollback_a_promotion_can_be_rolled_back(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        promote(uow, caller, profile.id, 2)
        roll_back(uow, caller, profile.id)
        promote(uow, caller, profile.id, 3)
        assert roll_back(uow, caller, profile.id) == {1: 1.0}

    def test_promoting_what_is_the_default_already_is_no_step_to_undo(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        for _ in range(3):  # a client that tries again
            promote(uow, caller, profile.id, 2)
        assert roll_back(uow, caller, profile.id) == {1: 1.0}

    def test_undoes_a_canary(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        set_alias(uow, caller, profile.id, "default", weights={1: 0.9, 2: 0.1})
        promote(uow, caller, profile.id, 2)
        assert roll_back(uow, caller, profile.id) == {1: 0.9, 2: 0.1}
        assert roll_back(uow, caller, profile.id) == {1: 1.0}

    def test_leaves_out_versions_that_were_archived(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        promote(uow, caller, profile.id, 2)
        promote(uow, caller, profile.id, 3)
        archive_version(uow, caller, profile.id, 2)
        assert roll_back(uow, caller, profile.id) == {1: 1.0}

    def test_needs_something_to_go_back_to(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        with pytest.raises(NothingToRollBackTo):
            roll_back(uow, caller, profile.id)

    def test_other_aliases_have_no_part_in_it(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        promote(uow, caller, profile.id, 2)
        set_alias(uow, caller, profile.id, "beta", version=3)
        assert roll_back(uow, caller, profile.id) == {1: 1.0}
        assert list_aliases(uow, caller, profile.id)["beta"] == {3: 1.0}


class TestWeights:
    def shares(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> dict[str, int]:
        """End user → version number."""
        return {user: pick_version(uow, caller, profile.id, alias="canary", end_user=user).number for user in USERS}

    def test_each_user_sticks_to_a_version_and_all_together_follow_the_weights(
        self, uow: UnitOfWork, caller: Caller, profile: Profile
    ) -> None:
        weights = {1: 0.7, 2: 0.2, 3: 0.1}
        assert set_alias(uow, caller, profile.id, "canary", weights=weights) == pytest.approx(weights)
        first = self.shares(uow, caller, profile)
        again = {u: pick_version(uow, caller, profile.id, alias="canary", end_user=u).number for u in USERS[:200]}
        assert again == {user: first[user] for user in again}
        counts = Counter(first.values())
        for number, weight in weights.items():
            sigma = math.sqrt(len(USERS) * weight * (1 - weight))
            assert abs(counts[number] - weight * len(USERS)) < 5 * sigma

    def test_raising_a_canary_moves_users_one_way_only(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        set_alias(uow, caller, profile.id, "canary", weights={1: 95, 2: 5})
        before = self.shares(uow, caller, profile)
        set_alias(uow, caller, profile.id, "canary", weights={1: 70, 2: 30})
        after = self.shares(uow, caller, profile)
        moved = Counter((before[user], after[user]) for user in USERS if before[user] != after[user])
        assert set(moved) == {(1, 2)}

    def test_weights_are_shares_whatever_their_sum(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        assert set_alias(uow, caller, profile.id, "canary", weights={2: 1, 1: 3}) == {1: 0.75, 2: 0.25}

    def test_a_request_without_a_user_is_drawn(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        set_alias(uow, caller, profile.id, "canary", weights={1: 1, 2: 1})
        drawn = Counter(pick_version(uow, caller, profile.id, alias="canary").number for _ in range(64))
        assert set(drawn) == {1, 2}  # 2^-63 that this fails by chance

    @pytest.mark.parametrize(
        "weights",
        [{}, {1: 0.0}, {1: -0.1, 2: 1.1}, {1: math.nan}, {1: math.inf}, {1: 1e7}, dict.fromkeys(range(1, 12), 1.0)],
        ids=["none", "zero", "negative", "nan", "infinite", "huge", "eleven"],
    )
    def test_bad_weights_are_refused_by_name(
        self, uow: UnitOfWork, caller: Caller, profile: Profile, weights: dict[int, float]
    ) -> None:
        with pytest.raises(InvalidSpec) as caught:
            set_alias(uow, caller, profile.id, "canary", weights=weights)
        assert caught.value.field.startswith("weights")

    def test_a_version_or_weights_and_not_both(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        for version, weights in ((None, None), (1, {1: 1.0})):
            with pytest.raises(InvalidSpec, match="either version or weights"):
                set_alias(uow, caller, profile.id, "canary", version, weights)

    def test_a_target_that_is_not_ready_changes_nothing(
        self, uow: UnitOfWork, make: Factory, caller: Caller, profile: Profile
    ) -> None:
        make.fit(caller, profile=profile.id)
        with pytest.raises(VersionNotReady):
            set_alias(uow, caller, profile.id, "default", weights={1: 1, 4: 1})
        with pytest.raises(NotFound):
            set_alias(uow, caller, profile.id, "default", weights={1: 1, 5: 1})
        assert default_of(uow, caller, profile) == {1: 1.0}

    @pytest.mark.parametrize("name", ["", "with space", "a:b", "a@b", "a#b", "x" * 65, "nul\x00", "-dash"])
    def test_bad_names_are_refused(self, uow: UnitOfWork, caller: Caller, profile: Profile, name: str) -> None:
        with pytest.raises(InvalidSpec):
            set_alias(uow, caller, profile.id, name, version=1)


class TestRemoveAlias:
    def test_removes_an_alias_once(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        set_alias(uow, caller, profile.id, "beta", version=2)
        remove_alias(uow, caller, profile.id, "beta")
        assert "beta" not in list_aliases(uow, caller, profile.id)
        with pytest.raises(NotFound):
            remove_alias(uow, caller, profile.id, "beta")
        with pytest.raises(NotFound):
            pick_version(uow, caller, profile.id, alias="beta")

    def test_the_default_stays(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        with pytest.raises(InvalidSpec):
            remove_alias(uow, caller, profile.id, "default")

    def test_a_version_in_use_cannot_be_archived(self, uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
        set_alias(uow, caller, profile.id, "beta", version=2)
        with pytest.raises(Exception, match="'beta' points to version 2"):
            archive_version(uow, caller, profile.id, 2)
        remove_alias(uow, caller, profile.id, "beta")
        archive_version(uow, caller, profile.id, 2)
        with pytest.raises(VersionNotReady, match="archived"):
            pick_version(uow, caller, profile.id, version=2)


def test_a_profile_without_ready_version_says_why(uow: UnitOfWork, make: Factory, caller: Caller) -> None:
    request = make.fit(caller)
    with pytest.raises(VersionNotReady) as caught:
        pick_version(uow, caller, request.profile.id)
    assert (caught.value.state, caught.value.number, caught.value.job_id) == ("pending", 1, request.job.id)


def test_every_move_is_audited_with_its_key(uow: UnitOfWork, caller: Caller, profile: Profile) -> None:
    promote(uow, caller, profile.id, 2)
    set_alias(uow, caller, profile.id, "canary", weights={1: 3, 2: 1})
    remove_alias(uow, caller, profile.id, "canary")
    roll_back(uow, caller, profile.id)
    archive_version(uow, caller, profile.id, 2)
    delete_profile(uow, caller, profile.id)
    entries = [e for e in audit_entries(uow, caller.tenant_id).rows if e.subject_id == str(profile.id)]
    own = [(entry.action, entry.details) for entry in reversed(entries) if entry.key_id == caller.key_id]
    assert own == [
        ("profile.create", {}),
        *(("version.create", {"version": number}) for number in (1, 2, 3)),
        ("profile.promote", {"version": 2}),
        ("alias.set", {"alias": "canary", "targets": {"1": 0.75, "2": 0.25}}),
        ("alias.remove", {"alias": "canary"}),
        ("profile.rollback", {"before": {"2": 1.0}, "after": {"1": 1.0}}),
        ("version.archive", {"version": 2}),
        ("profile.delete", {"assignments": 0}),
    ]
    by_the_system = [entry.details for entry in entries if entry.key_id is None]
    assert by_the_system == [{"version": 1}]  # the first good version became the default
