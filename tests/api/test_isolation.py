"""Nobody reaches another tenant, or more than a key allows: every operation, with every kind of wrong key.

The same again with the tenant filters cut out of every statement, so that row-level security alone keeps them apart.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text, update

from alignez_core.engines.fake.engine import FakeEngine
from api.app import create_app
from api.openapi_file import FILE
from api.settings import ApiSettings
from profiles.models import ApiKey
from profiles.service import KeySpec, create_key
from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory
from tests.api.conftest import Tenant, new_tenant
from tests.api.test_openapi import OPERATIONS
from tests.conftest import all_rows

#: In texts and names of the victim's rows, and nowhere else.
SECRET = "zebrafish"
CALLS = [(method, path) for path, method, _ in OPERATIONS if path not in ("/health", "/ready")]
#: What tenants share.
GENERATION = re.compile(r"/v1/(users/[^/]+/)?(chat/completions|completions|models.*)|/v1/compare")


@dataclass(frozen=True)
class World:
    """A victim with rows of every kind, and keys that must not reach them."""

    victim: Tenant
    ids: dict[str, str]
    client: TestClient
    keys: dict[str, str]  #: kind of attacker → secret

    def send(self, secret: str, method: str, path: str, names: dict[str, str]) -> Any:
        filled = re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], "x"), path)
        headers = {"Authorization": f"Bearer {secret}"}
        return self.client.request(method, filled, headers=headers, json=body_of(method, path, names))


def body_of(method: str, path: str, names: dict[str, str]) -> dict[str, Any] | None:
    """A valid body that names the victim's things."""
    if method not in ("post", "put", "patch"):
        return None
    profile = names["profile"]
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    bodies: dict[str, dict[str, Any]] = {
        "chat/completions": {"model": f"base@{profile}#1", **chat},
        "completions": {"model": f"base@{profile}#1", "prompt": "Hi", "max_tokens": 4},
        "compare": {"profiles": [{"name": profile, "version": 1}], "prompt": "Hi", "max_tokens": 4},
        "profile": {"profile": profile},
        "promote": {"version": 1, "force": True},
        "rollback": {},
        "archive": {},
        "cancel": {},
        "evaluate": {},
        "versions": {"persona": {"preferred": "a", "dispreferred": "b"}},
        "rotate": {"overlap_s": 0},
        "keys": {"name": "mine", "role": "inference", "profile": profile},
        "tenants": {"name": f"mine {uuid.uuid4()}"},
        "profiles": {"name": f"p-{uuid.uuid4().hex[:8]}", "persona": {"preferred": "a", "dispreferred": "b"}},
        "{alias}": {"version": 1},
        "{profile}": {"description": "taken over"},
    }
    return next((body for end, body in bodies.items() if path.endswith("/" + end)), {})


class Unfiltered:
    """Cuts conditions on a tenant out of statements while `on`."""

    def __init__(self, sessions: SessionFactory) -> None:
        self.on = False
        self.cut = 0
        event.listen(sessions.kw["bind"], "before_cursor_execute", self._cut, retval=True)

    def _cut(self, _: Any, __: Any, statement: str, values: Any, *___: Any) -> tuple[str, Any]:
        if self.on and not statement.lstrip().upper().startswith("INSERT"):
            own = r"(\w+\.)?tenant_id = (%\(\w+\)s(::UUID)?)"
            statement, cut = re.subn(own, r"(\2)::uuid IS NOT NULL", statement)
            self.cut += cut
        return statement, values


@pytest.fixture(scope="module")
def unfiltered(postgres_url: str) -> Iterator[tuple[SessionFactory, Unfiltered]]:
    sessions = make_session_factory(postgres_url)
    yield sessions, Unfiltered(sessions)
    sessions.kw["bind"].dispose()


@pytest.fixture(scope="module")
def world(unfiltered: tuple[SessionFactory, Unfiltered], database: DatabaseSettings) -> Iterator[World]:
    sessions, _ = unfiltered
    engine = FakeEngine()
    quota = database.model_copy(update={"max_queued_jobs": 10_000})
    app = create_app(ApiSettings(auth_cache_s=0.001), engine=engine, session_factory=sessions, database=quota)
    with TestClient(app) as client:
        victim = new_tenant(client, sessions, engine, role="admin", name=f"{SECRET} {uuid.uuid4()}")
        name = f"{SECRET}-profile"
        queries = [{"text": f"{SECRET} question {i}"} for i in range(8)]
        victim.ready(name, description=SECRET, queries=queries)
        victim.post(f"/v1/profiles/{name}/promote", json={"version": 1, "force": True})
        victim.put(f"/v1/profiles/{name}/aliases/beta", json={"version": 1})
        victim.put(f"/v1/users/{SECRET}-user/profile", json={"profile": name})
        waiting = victim.pending(f"{SECRET}-waiting")
        other = victim.ready(f"{SECRET}-other", persona={"preferred": "bold", "dispreferred": "shy"})
        assert other
        ids = {
            "profile": victim.get(f"/v1/profiles/{name}").json()["id"], "name": name, "user": f"{SECRET}-user",
            "number": "1", "alias": "beta", "job": waiting["job"]["id"], "key": str(victim.caller.key_id),
        }  # fmt: skip
        yield World(victim, ids, client, _keys(sessions, client, engine, victim))


def _keys(sessions: SessionFactory, client: TestClient, engine: FakeEngine, victim: Tenant) -> dict[str, str]:
    """Wrong keys: of other tenants, made up, ended, and of the victim's own tenant with fewer rights."""
    foreign = {
        role: new_tenant(client, sessions, engine, role=role).secret for role in ("inference", "member", "admin")
    }
    tenant = victim.caller.tenant_id
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        expired, expired_secret = create_key(
            uow, tenant, KeySpec("admin", "old", datetime.now(UTC) + timedelta(hours=1))
        )
        revoked, revoked_secret = create_key(uow, tenant, KeySpec("admin", "gone"))
        past = datetime.now(UTC) - timedelta(seconds=1)
        uow.session.execute(update(ApiKey).where(ApiKey.id == expired.id).values(expires_at=past))
        uow.session.execute(update(ApiKey).where(ApiKey.id == revoked.id).values(revoked_at=past))
    ended = {"expired": expired_secret, "revoked": revoked_secret}
    made_up = {"guessed": victim.secret[:-1] + ("A" if victim.secret[-1] != "A" else "B"), "digest": "az_" + "0" * 43}
    return {**foreign, **ended, **made_up}


_WATCHED = (
    "profiles", "profile_versions", "profile_aliases", "assignments", "jobs", "api_keys", "fit_queries", "evaluations",
)  # fmt: skip


def everything_of(world: World) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the victim but those that its own reads write."""
    found = {}
    with all_rows(world.victim.sessions) as session:
        for table in (
            "profiles",
            "profile_versions",
            "profile_aliases",
            "assignments",
            "jobs",
            "api_keys",
            "fit_queries",
        ):
            columns = "*" if table != "api_keys" else "id, name, role, revoked_at, expires_at"
            statement = text(f"SELECT {columns} FROM {table} WHERE tenant_id = :tenant ORDER BY 1, 2")
            rows = session.execute(statement, {"tenant": world.victim.caller.tenant_id})
            found[table] = [tuple(map(str, row)) for row in rows]
    return found


def attack(world: World, kinds: Iterable[str], calls: Iterable[tuple[str, str]], names: dict[str, str]) -> list[Any]:
    """Sends every call with every key; returns the answers that should not be."""
    leaks = []
    for kind, (method, path) in itertools.product(kinds, calls):
        reply = world.send(world.keys[kind], method, path, names)
        # What the attacker itself sent may come back in an error.
        said = re.sub(rf"{SECRET}-(profile|user)", "", reply.text)
        ended = kind in ("expired", "revoked", "guessed", "digest")
        refused = reply.status_code == 401 if ended else reply.status_code in (403, 404) or _own(method, path)
        if not refused or SECRET in said or reply.status_code >= 500:
            leaks.append((kind, method, path, reply.status_code, reply.text[:200]))
    return leaks


@contextmanager
def without_filters(cutting: Unfiltered, on: bool = True) -> Iterator[None]:
    cutting.on, cutting.cut = on, 0
    try:
        yield
    finally:
        cutting.on = False


@pytest.mark.parametrize("filters", [True, False], ids=["with filters", "by row-level security alone"])
@pytest.mark.parametrize("named", ["by id", "by name"])
def test_no_wrong_key_reads_or_changes_anything(
    world: World, unfiltered: tuple[SessionFactory, Unfiltered], filters: bool, named: str
) -> None:
    _, cutting = unfiltered
    names = world.ids if named == "by id" else {**world.ids, "profile": world.ids["name"]}
    before = everything_of(world)
    with without_filters(cutting, not filters):
        assert attack(world, world.keys, CALLS, names) == []
    assert filters or cutting.cut > 50
    assert everything_of(world) == before


def test_the_attack_finds_what_neither_filters_nor_row_level_security_keep(
    world: World, unfiltered: tuple[SessionFactory, Unfiltered], owner_sessions: SessionFactory
) -> None:
    def switch(verb: str) -> None:
        with owner_sessions() as session, session.begin():
            for table in ("profiles", "profile_versions", "jobs", "assignments"):
                session.execute(text(f"ALTER TABLE {table} {verb} ROW LEVEL SECURITY"))

    switch("DISABLE")
    try:
        with without_filters(unfiltered[1]):
            reads = [call for call in CALLS if call[0] == "get" and not call[1].endswith("/events")]  # which would last
            leaks = attack(world, ["member"], reads, world.ids)
    finally:
        switch("ENABLE")
    assert {path for _, _, path, _, _ in leaks} > {"/v1/profiles", "/v1/profiles/{profile}", "/v1/jobs/{job}"}


def _own(method: str, path: str) -> bool:
    """True for a call that concerns the attacker's own tenant, whatever the victim's names in it."""
    lists = {
        "/v1/profiles",
        "/v1/jobs",
        "/v1/keys",
        "/v1/audit",
        "/v1/audit/verify",
        "/v1/usage",
        "/v1/models",
        "/v1/users/{user}/models",
    }
    theirs = {("delete", "/v1/users/{user}"), ("get", "/v1/users/{user}/export")}  # each tenant has its own end users
    return (method, path) in theirs or (path in lists and (method == "get" or path == "/v1/profiles"))


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("inference", r"/v1/(users/\{user\}/)?(chat/completions|completions|models.*)|/v1/compare"),
        ("member", r"/v1/(?!keys|audit|usage).*"),
        ("admin", r"/v1/.*"),
        ("operator", r".*"),
    ],
)
def test_each_role_may_do_its_own_and_no_more(world: World, role: str, allowed: str) -> None:
    sessions, tenant = world.victim.sessions, world.victim.caller.tenant_id
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        _, secret = create_key(uow, tenant, KeySpec(role, "test"))
    nobody = {"profile": "none", "job": str(uuid.uuid4()), "key": str(uuid.uuid4()), "name": "none", "user": "nobody"}
    for method, path in CALLS:
        reply = world.send(secret, method, path, nobody)
        assert (reply.status_code != 403) == bool(re.fullmatch(allowed, path)), (method, path, reply.text)


def test_the_calls_are_those_of_the_committed_file() -> None:
    assert FILE.exists()
    assert len(CALLS) > 40
    assert any(GENERATION.fullmatch(path) for _, path in CALLS)
