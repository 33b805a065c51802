"""The audit log is a chain of digests, names who did what from where, and holds no name or text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from profiles.models import Role
from profiles.service import (
    AuditProof,
    Caller,
    audit_entries,
    authenticate,
    create_key,
    note_refused_key,
    revoke_key,
    verify_audit,
)
from profiles.service.aliases import assign_user
from profiles.service.keys import KeySpec
from profiles.spec import user_digest
from profiles.uow import CALLED_FROM, PLATFORM, CalledFrom, SessionFactory, UnitOfWork
from tests.factories import Factory


def written(committed: SessionFactory, entries: int) -> Caller:
    with UnitOfWork.open(committed, PLATFORM) as uow:
        caller = Factory(uow).caller()
    with UnitOfWork.open(committed, caller.tenant_id) as uow:
        for i in range(entries - 2):  # tenant and key made two
            uow.repository.accounts.audit(caller.tenant_id, caller.key_id, "test", "number", i, ü="é")
    return caller


def tamper(owner: SessionFactory, *statements: str) -> None:
    """As the tables' owner, past every trigger."""
    with owner() as session, session.begin():
        session.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            assert session.connection().exec_driver_sql(statement).rowcount


def proof(committed: SessionFactory, caller: Caller) -> AuditProof:
    with UnitOfWork.open(committed, caller.tenant_id) as uow:
        return verify_audit(uow, caller.tenant_id)


def test_an_untouched_log_is_intact_and_its_head_moves(committed: SessionFactory) -> None:
    caller = written(committed, 6)
    before = proof(committed, caller)
    assert (before.entries, before.first_wrong) == (6, None)
    assert proof(committed, caller) == before
    with UnitOfWork.open(committed, caller.tenant_id) as uow:
        uow.repository.accounts.audit(caller.tenant_id, None, "more", "x", 1)
    after = proof(committed, caller)
    assert (after.entries, after.first_wrong) == (7, None)
    assert after.head != before.head


@pytest.mark.parametrize(
    ("change", "first_wrong"),
    [
        ("UPDATE audit_log SET action = 'other' WHERE number = 4", 4),
        ("""UPDATE audit_log SET details = '{"a": 1}' WHERE number = 3""", 3),
        ("UPDATE audit_log SET key_id = NULL WHERE number = 5", 5),
        ("UPDATE audit_log SET created_at = created_at + interval '1 microsecond' WHERE number = 3", 3),
        ("UPDATE audit_log SET address = '10.0.0.1' WHERE number = 6", 6),
        ("DELETE FROM audit_log WHERE number = 4", 4),
        ("DELETE FROM audit_log WHERE number = 1", 1),
        ("UPDATE audit_log SET number = 99 WHERE number = 6", 6),
    ],
)
def test_a_change_or_a_gap_is_found(
    committed: SessionFactory, owner_sessions: SessionFactory, change: str, first_wrong: int
) -> None:
    caller = written(committed, 6)
    tamper(owner_sessions, change)
    assert proof(committed, caller).first_wrong == first_wrong


def test_a_missing_end_shows_in_the_head_that_was_kept(
    committed: SessionFactory, owner_sessions: SessionFactory
) -> None:
    caller = written(committed, 6)
    kept = proof(committed, caller)
    tamper(owner_sessions, "DELETE FROM audit_log WHERE number = 6")
    assert proof(committed, caller).first_wrong is None
    assert proof(committed, caller).head != kept.head


def test_entries_of_many_at_once_are_one_chain(committed: SessionFactory) -> None:
    caller = written(committed, 2)

    def write(number: int) -> None:
        with UnitOfWork.open(committed, caller.tenant_id) as uow:
            uow.repository.accounts.audit(caller.tenant_id, None, "test", "number", number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    found = proof(committed, caller)
    assert (found.entries, found.first_wrong) == (42, None)


def test_a_temporary_table_does_not_stand_in_for_the_log(committed: SessionFactory) -> None:
    caller = written(committed, 3)
    with UnitOfWork.open(committed, caller.tenant_id) as uow:
        uow.session.execute(text("CREATE TEMPORARY TABLE audit_log ON COMMIT DROP AS SELECT * FROM audit_log LIMIT 0"))
        uow.session.execute(
            text(
                "INSERT INTO public.audit_log (tenant_id, action, subject, subject_id, details)"
                " VALUES (:tenant, 'test', 'x', 'x', '{}')"
            ),
            {"tenant": caller.tenant_id},
        )
    found = proof(committed, caller)
    assert (found.entries, found.first_wrong) == (4, None)


def test_an_entry_says_from_where_and_for_which_request(uow: UnitOfWork, committed: SessionFactory) -> None:
    caller = written(committed, 2)
    token = CALLED_FROM.set(CalledFrom("req_1", "192.0.2.7"))
    try:
        with UnitOfWork.open(committed, caller.tenant_id) as own:
            own.repository.accounts.audit(caller.tenant_id, None, "test", "x", 1)
            entry = audit_entries(own, caller.tenant_id, limit=1).rows[0]
            own.session.refresh(entry)
    finally:
        CALLED_FROM.reset(token)
    assert (entry.request_id, entry.address) == ("req_1", "192.0.2.7")


def test_entries_hold_no_names_and_no_end_users(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller(Role.ADMIN)
    profile = make.ready(caller).profile
    assign_user(uow, caller, "ada.lovelace", profile.id)
    create_key(uow, caller.tenant_id, KeySpec("inference", "ada's laptop", end_user="ada.lovelace"), by=caller)
    entries = audit_entries(uow, caller.tenant_id).rows
    said = " ".join(f"{entry.subject_id} {entry.details}" for entry in entries)
    assert "ada" not in said
    assert profile.name not in said
    assert said.count(user_digest(caller.tenant_id, "ada.lovelace")) == 2


def test_a_revoked_key_s_use_is_noted_and_an_unknown_one_s_is_nobody_s(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller(Role.ADMIN)
    key, secret = create_key(uow, caller.tenant_id, KeySpec("member", "k"))
    assert authenticate(uow, secret).key_id == key.id
    revoke_key(uow, caller.tenant_id, key.id)
    before = len(audit_entries(uow, caller.tenant_id).rows)
    note_refused_key(uow, secret)
    note_refused_key(uow, "az_unknown")
    entries = audit_entries(uow, caller.tenant_id).rows
    assert len(entries) == before + 1
    assert (entries[0].action, entries[0].details) == ("key.refused", {"why": "revoked"})
