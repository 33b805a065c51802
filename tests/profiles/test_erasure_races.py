"""Erasures at the same time as other work: nothing is written behind them, and no two wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from time import sleep
from typing import Any
from uuid import UUID

import pytest

from profiles.errors import Conflict, NotFound, Unauthenticated
from profiles.fitting.request import check_quota, request_fit
from profiles.models import Role
from profiles.service import (
    Caller,
    assign_user,
    authenticate,
    create_key,
    erase_profile,
    erase_tenant,
    erase_user,
    get_profile,
    promote,
    revoke_key,
    rotate_key,
)
from profiles.service.keys import KeySpec
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.factories import Factory
from tests.profiles.test_erasure import SECRET, found

SPEC = {"persona": {"preferred": SECRET, "dispreferred": "x"}}


@pytest.fixture
def two(committed: SessionFactory) -> tuple[Caller, Caller, list[UUID]]:
    """An operator, an administrator of another tenant, and two profiles of that tenant."""
    with UnitOfWork.open(committed, PLATFORM) as uow:
        make = Factory(uow)
        operator, admin = make.caller(Role.OPERATOR), make.caller(Role.ADMIN)
        return operator, admin, [make.ready(admin).profile.id for _ in range(2)]


def race(
    sessions: SessionFactory,
    first: Callable[[UnitOfWork], Any],
    second: Callable[[UnitOfWork], Any],
    then: Callable[[UnitOfWork], Any] = lambda uow: None,
) -> tuple[Any, Future[Any]]:
    """Runs `second` when `first` has run but not committed, and `then` in the transaction of `first` after that."""

    def other() -> Any:
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            return second(uow)

    with ThreadPoolExecutor(1) as pool:
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            result = first(uow)
            running = pool.submit(other)
            sleep(0.5)
            then(uow)
        running.exception(timeout=20)
    return result, running


def left(sessions: SessionFactory) -> list[tuple[str, str]]:
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        return found(uow, SECRET)


def late_work(admin: Caller) -> dict[str, Callable[[UnitOfWork], Any]]:
    return {
        "profile": lambda uow: request_fit(uow, admin, SPEC, name=SECRET),
        "key": lambda uow: create_key(uow, admin.tenant_id, KeySpec("admin", SECRET), by=admin),
    }


@pytest.mark.parametrize("what", ["profile", "key"])
def test_a_request_that_waits_for_the_erasure_of_its_tenant_writes_nothing(
    committed: SessionFactory, two: tuple[Caller, Caller, list[UUID]], what: str
) -> None:
    operator, admin, _ = two
    work = late_work(admin)[what]
    _, late = race(committed, lambda uow: erase_tenant(uow, operator, admin.tenant_id), work)
    with pytest.raises(NotFound):
        late.result()
    with pytest.raises(NotFound), UnitOfWork.open(committed, PLATFORM) as uow:
        work(uow)
    assert left(committed) == []


def test_two_erasures_of_a_tenant_have_one_receipt(
    committed: SessionFactory, two: tuple[Caller, Caller, list[UUID]]
) -> None:
    operator, admin, _ = two
    _, second = race(committed, *2 * [lambda uow: erase_tenant(uow, operator, admin.tenant_id)])
    with pytest.raises(NotFound):
        second.result()


def test_a_rotation_leaves_no_key_of_an_erased_end_user(
    committed: SessionFactory, two: tuple[Caller, Caller, list[UUID]]
) -> None:
    _, admin, _ = two
    with UnitOfWork.open(committed, PLATFORM) as uow:
        key, _ = create_key(uow, admin.tenant_id, KeySpec("inference", SECRET, end_user=SECRET), by=admin)
    (_, secret), erasure = race(
        committed,
        lambda uow: rotate_key(uow, admin.tenant_id, key.id, timedelta(0), by=admin),
        lambda uow: erase_user(uow, admin, SECRET),
    )
    assert erasure.result().removed == {"api_keys": 2}
    assert left(committed) == []
    with pytest.raises(Unauthenticated), UnitOfWork.open(committed, PLATFORM) as uow:
        authenticate(uow, secret)


def test_no_key_is_made_for_a_profile_that_is_being_erased(
    committed: SessionFactory, two: tuple[Caller, Caller, list[UUID]]
) -> None:
    _, admin, (profile, _) = two
    spec = KeySpec("inference", SECRET, profile=profile)
    _, late = race(
        committed, lambda uow: erase_profile(uow, admin, profile), lambda uow: create_key(uow, admin.tenant_id, spec)
    )
    with pytest.raises(NotFound):
        late.result()
    assert left(committed) == []


@pytest.mark.parametrize("work", ["fit", "promote", "assignment"])
def test_the_erasure_of_a_tenant_waits_for_work_and_never_for_each_other(
    committed: SessionFactory, two: tuple[Caller, Caller, list[UUID]], work: str
) -> None:
    operator, admin, profiles = two
    last = max(profiles)
    with UnitOfWork.open(committed, PLATFORM) as uow:
        assign_user(uow, admin, "ada", last)
    first, then = {
        "fit": (
            lambda uow: get_profile(uow, admin, last, lock=True),
            lambda uow: check_quota(uow, admin, 100),
        ),
        "promote": (
            lambda uow: get_profile(uow, admin, last, lock=True),
            lambda uow: promote(uow, admin, last, 1),
        ),
        "assignment": (
            lambda uow: uow.repository.catalog.remove_assignment(admin.tenant_id, "ada"),
            lambda uow: uow.repository.accounts.audit(admin.tenant_id, None, "user.unassign", "user", "x"),
        ),
    }[work]
    _, erasure = race(committed, first, lambda uow: erase_tenant(uow, operator, admin.tenant_id), then)
    assert erasure.result().removed["profile_versions"] == 2


def test_the_erasure_of_a_profile_waits_for_the_revocation_of_its_key(
    committed: SessionFactory, two: tuple[Caller, Caller, list[UUID]]
) -> None:
    _, admin, (profile, _) = two
    with UnitOfWork.open(committed, PLATFORM) as uow:
        key, _ = create_key(uow, admin.tenant_id, KeySpec("inference", SECRET, profile=profile), by=admin)

    def most_of_a_revocation(uow: UnitOfWork) -> None:
        uow.repository.accounts.lock_tenant(admin.tenant_id)
        uow.repository.erasures.keys(admin.tenant_id, profile_id=profile)

    _, erasure = race(
        committed,
        most_of_a_revocation,
        lambda uow: erase_profile(uow, admin, profile),
        lambda uow: uow.repository.accounts.audit(admin.tenant_id, None, "key.revoke", "key", key.id),
    )
    assert erasure.result().removed["profile_versions"] == 1


def test_two_administrators_cannot_revoke_each_other(
    committed: SessionFactory, two: tuple[Caller, Caller, list[UUID]]
) -> None:
    _, one, _ = two
    with UnitOfWork.open(committed, PLATFORM) as uow:
        key, _ = create_key(uow, one.tenant_id, KeySpec("admin", "two"), by=one)
    two_ = Caller(key.id, one.tenant_id, Role.ADMIN)
    _, second = race(
        committed,
        lambda uow: revoke_key(uow, one.tenant_id, key.id, by=one),
        lambda uow: revoke_key(uow, one.tenant_id, one.key_id, by=two_),  # type: ignore[arg-type]
    )
    with pytest.raises(Conflict):
        second.result()
