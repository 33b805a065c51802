"""Nothing of an erased profile, end user or tenant is left in any table."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from profiles.errors import Conflict, NotFound, Unauthenticated
from profiles.models import Base, Role
from profiles.service import (
    Caller,
    assign_user,
    authenticate,
    begin_idempotent,
    create_key,
    delete_profile,
    erase_profile,
    erase_tenant,
    erase_user,
    export_user,
    finish_idempotent,
    get_profile,
    verify_audit,
)
from profiles.service.keys import KeySpec
from profiles.uow import UnitOfWork
from tests.factories import Factory

SECRET = "zebrafish"


def found(uow: UnitOfWork, *texts: str) -> list[tuple[str, str]]:
    """(table, text) of every row that holds one of the texts, in any column."""
    hits = []
    for table in Base.metadata.tables:
        for each in texts:
            statement = text(f"SELECT count(*) FROM {table} AS row WHERE strpos(row::text, :text) > 0")
            if uow.session.scalar(statement, {"text": each}):
                hits.append((table, each))
    return hits


def rows_of(uow: UnitOfWork, caller: Caller) -> dict[str, int]:
    """Table → number of the tenant's rows."""
    owned = [name for name, table in Base.metadata.tables.items() if "tenant_id" in table.columns]
    counts = {
        name: uow.session.scalar(text(f"SELECT count(*) FROM {name} WHERE tenant_id = :t"), {"t": caller.tenant_id})
        for name in owned
    }
    return {name: count for name, count in counts.items() if count}


@pytest.fixture
def caller(make: Factory) -> Caller:
    return make.caller(Role.ADMIN)


def make_secret(uow: UnitOfWork, make: Factory, caller: Caller) -> str:
    """A profile with a secret in everything that a caller can write; its id."""
    spec = {
        "persona": {"preferred": SECRET, "dispreferred": f"not {SECRET}"},
        "queries": [{"text": f"{SECRET} {i}", "preferred": SECRET, "dispreferred": SECRET} for i in range(12)],
    }
    made = make.ready(caller, name=f"{SECRET}-name", spec=spec)
    profile = made.profile.id
    get_profile(uow, caller, profile).description = SECRET
    waiting = make.fit(caller, profile=profile, spec=spec)
    make.claimed(waiting)
    assign_user(uow, caller, f"{SECRET}-user", profile)
    create_key(uow, caller.tenant_id, KeySpec("inference", f"{SECRET} key", profile=profile), by=caller)
    assert begin_idempotent(uow, caller, "k", b"") is None
    finish_idempotent(uow, caller, "k", 202, {"profile": {"id": str(profile), "name": f"{SECRET}-name"}})
    uow.session.flush()
    return str(profile)


@pytest.mark.parametrize("deleted_before", [False, True])
def test_nothing_of_an_erased_profile_is_left(
    uow: UnitOfWork, make: Factory, caller: Caller, deleted_before: bool
) -> None:
    other = make.ready(caller).profile
    kept = rows_of(uow, caller)
    profile = make_secret(uow, make, caller)
    assert {table for table, _ in found(uow, SECRET)} >= {
        "profiles", "profile_versions", "assignments", "api_keys", "idempotency_keys",
    }  # fmt: skip
    if deleted_before:
        delete_profile(uow, caller, profile)
    receipt = erase_profile(uow, caller, profile)
    uow.session.expire_all()
    assert found(uow, SECRET) == []
    left = rows_of(uow, caller)
    # A row without a name, a revoked key without one, and the log of what happened.
    assert {table: left[table] - kept.get(table, 0) for table in ("profiles", "api_keys")} == {
        "profiles": 1, "api_keys": 1,
    }  # fmt: skip
    assert {table: count for table, count in left.items() if table not in ("profiles", "api_keys", "audit_log")} == {
        table: count for table, count in kept.items() if table not in ("profiles", "api_keys", "audit_log")
    }
    assert receipt.removed["profile_versions"] == 2
    assert receipt.removed["fit_queries"] >= 12
    assert get_profile(uow, caller, other.id).id == other.id
    assert verify_audit(uow, caller.tenant_id).first_wrong is None
    for again in (profile, f"{SECRET}-name"):
        with pytest.raises(NotFound):
            erase_profile(uow, caller, again)


def test_another_tenant_erases_nothing(uow: UnitOfWork, make: Factory, caller: Caller) -> None:
    profile = make_secret(uow, make, caller)
    for ref in (profile, f"{SECRET}-name"):
        with pytest.raises(NotFound):
            erase_profile(uow, make.caller(), ref)
    assert get_profile(uow, caller, profile)


def test_nothing_of_an_erased_end_user_is_left(uow: UnitOfWork, make: Factory, caller: Caller) -> None:
    profile = make.ready(caller).profile
    user = f"{SECRET}@example.com"
    assign_user(uow, caller, user, profile.id)
    _, secret = create_key(uow, caller.tenant_id, KeySpec("inference", "phone", end_user=user), by=caller)
    assert begin_idempotent(uow, caller, "k", b"") is None
    finish_idempotent(uow, caller, "k", 201, {"end_user": user})
    assert authenticate(uow, secret, f"{SECRET}.example.com").end_user == user
    uow.session.expire_all()
    exported = export_user(uow, caller, user)
    assert exported["assignment"]["profile_id"] == str(profile.id)
    assert [key["name"] for key in exported["keys"]] == ["phone"]
    assert [entry["action"] for entry in exported["audit"]] == ["user.assign"]
    receipt = erase_user(uow, caller, user)
    assert receipt.removed == {"api_keys": 1, "assignments": 1, "idempotency_keys": 1}
    assert found(uow, SECRET) == []
    with pytest.raises(Unauthenticated):
        authenticate(uow, secret)
    assert erase_user(uow, caller, user).removed == {}
    assert get_profile(uow, caller, profile.id)


@pytest.mark.parametrize("user", ['a"b\\c', "é🐟", "x\u2028y", "id"])
def test_a_stored_response_goes_with_an_end_user_it_names_and_no_other(
    uow: UnitOfWork, caller: Caller, user: str
) -> None:
    for key, response in (("mine", {"data": [{"end_user": user}]}), ("other", {user: 1, "name": f"not {user}"})):
        assert begin_idempotent(uow, caller, key, b"") is None
        finish_idempotent(uow, caller, key, 201, response)
    assert erase_user(uow, caller, user).removed == {"idempotency_keys": 1}


def test_nothing_of_an_erased_tenant_is_left(uow: UnitOfWork, make: Factory) -> None:
    operator, victim = make.caller(Role.OPERATOR), make.caller(Role.ADMIN, tenant=f"{SECRET} Ltd")
    kept = rows_of(uow, operator)
    make_secret(uow, make, victim)
    make.ready(victim)
    with pytest.raises(Conflict):
        erase_tenant(uow, operator, operator.tenant_id)
    receipt = erase_tenant(uow, operator, victim.tenant_id)
    uow.session.expire_all()
    assert receipt.removed["profile_versions"] == 3
    assert found(uow, SECRET) == []
    assert set(rows_of(uow, victim)) == {"api_keys", "audit_log", "profiles"}
    assert rows_of(uow, operator) == kept
    assert verify_audit(uow, victim.tenant_id).first_wrong is None
    with pytest.raises(NotFound):
        erase_tenant(uow, operator, victim.tenant_id)
