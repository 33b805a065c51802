"""What tenants use is counted off the hot path, and administrators can read it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alignez_core.engines.fake.engine import FakeEngine
from api.usage import UsageMeter
from profiles.errors import DatabaseUnavailable
from profiles.service import UsageCount, record_usage, usage_since
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.api.conftest import Tenant, serving

Row = tuple[str | None, int, int, int]


@pytest.fixture
def used(app: FastAPI, operator: Tenant) -> Callable[[Tenant], list[Row]]:
    """(profile id, requests, prompt tokens, completion tokens) of a tenant, as administrators see them."""

    def read(tenant: Tenant) -> list[Row]:
        app.state.services.usage.flush()
        reply = operator.get("/admin/usage", params={"tenant": str(tenant.caller.tenant_id)})
        assert reply.status_code == 200, reply.text
        rows = reply.json()["data"]
        assert {row["day"] for row in rows} <= {str(datetime.now(UTC).date())}
        assert {row["tenant_id"] for row in rows} <= {str(tenant.caller.tenant_id)}
        keys = ("profile_id", "requests", "prompt_tokens", "completion_tokens")
        return sorted((tuple(row[key] for key in keys) for row in rows), key=str)

    return read


def test_whole_answers_and_streams_are_counted_for_the_base_model_and_for_profiles(
    tenant: Tenant, stranger: Tenant, used: Callable[[Tenant], list[Row]]
) -> None:
    tenant.ready("p")
    profile = tenant.get("/v1/profiles/p").json()["id"]
    bare = [tenant.chat().json()["usage"] for _ in range(2)]
    mine = [tenant.chat(model="fake@p", n=2).json()["usage"]]
    events = tenant.chat(model="fake@p", stream=True, max_tokens=4).text
    assert "[DONE]" in events

    assert used(tenant) == sorted(
        [
            (None, 2, sum(u["prompt_tokens"] for u in bare), sum(u["completion_tokens"] for u in bare)),
            (profile, 2, 2 * mine[0]["prompt_tokens"], mine[0]["completion_tokens"] + 4),
        ],
        key=str,
    )
    assert used(stranger) == []


def test_several_prompts_count_each_and_compared_profiles_count_each(
    tenant: Tenant, used: Callable[[Tenant], list[Row]]
) -> None:
    body = {"model": "fake", "prompt": ["One two", "Three"], "n": 2, "max_tokens": 3, "ignore_eos": True}
    assert tenant.post("/v1/completions", json=body).status_code == 200
    assert used(tenant) == [(None, 1, 3, 12)]

    tenant.ready("p")
    profile = tenant.get("/v1/profiles/p").json()["id"]
    for stream in (False, True):
        body = {"prompt": "One", "profiles": [{"name": "p"}, {"name": "p", "strength": 0.5}], "stream": stream}
        reply = tenant.post("/v1/compare", json=body)
        assert reply.status_code == 200
    rows = {row[0]: row[1] for row in used(tenant)}
    assert rows == {None: 3, profile: 2}


def test_what_was_refused_is_not_counted(tenant: Tenant, used: Callable[[Tenant], list[Row]]) -> None:
    assert tenant.chat("word " * 600).status_code == 400
    assert tenant.chat(model="fake@none").status_code == 404
    assert used(tenant) == []


def test_a_client_that_leaves_pays_for_what_was_made(
    make_app: Any, tenant: Tenant, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(FakeEngine(step_s=0.02), usage_flush_s=60)
    meter: UsageMeter = app.state.services.usage
    count, counted = meter.count, threading.Event()

    def noting(tenant_id: UUID, profile_id: UUID | None, prompt_tokens: int, completion_tokens: int) -> None:
        count(tenant_id, profile_id, prompt_tokens, completion_tokens)
        counted.set()

    monkeypatch.setattr(meter, "count", noting)
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 400,
            "ignore_eos": True}  # fmt: skip
    with serving(app) as (url, _), httpx.Client(timeout=20) as client:
        with client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=tenant.headers) as reply:
            lines = reply.iter_lines()
            for _ in range(8):
                next(lines)
        assert counted.wait(5)
    # Shutting down flushed it, long before the interval was over.
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        [row] = usage_since(uow, tenant.caller.tenant_id).rows
    assert row.requests == 1
    assert 0 < row.completion_tokens < 400


def test_counts_reach_the_database_by_themselves(make_app: Any, tenant: Tenant, sessions: SessionFactory) -> None:
    with TestClient(make_app(FakeEngine(), usage_flush_s=0.02)) as client:
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        assert client.post("/v1/chat/completions", json=body, headers=tenant.headers).status_code == 200
        deadline = time.monotonic() + 5
        rows: list[Any] = []
        while not rows and time.monotonic() < deadline:
            time.sleep(0.02)
            with UnitOfWork.open(sessions, PLATFORM) as uow:
                rows = usage_since(uow, tenant.caller.tenant_id).rows
    assert [row.requests for row in rows] == [1]


def test_while_the_database_is_away_counts_are_kept(
    tenant: Tenant, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise DatabaseUnavailable

    meter = UsageMeter(sessions, 60)
    meter.count(tenant.caller.tenant_id, None, 5, 7)
    with monkeypatch.context() as patch:
        patch.setattr("api.usage.record_usage", away)
        assert not meter.flush()
    meter.count(tenant.caller.tenant_id, None, 1, 1)
    assert meter.flush()
    assert meter.flush()  # nothing is added twice
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        [row] = usage_since(uow, tenant.caller.tenant_id).rows
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (2, 6, 8)


def test_what_the_database_will_never_take_does_not_stop_the_rest(tenant: Tenant, sessions: SessionFactory) -> None:
    meter = UsageMeter(sessions, 60)
    meter.count(uuid4(), None, 1, 1)  # a tenant that does not exist
    assert meter.flush()
    meter.count(tenant.caller.tenant_id, None, 1, 1)
    assert meter.flush()
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        assert len(usage_since(uow, tenant.caller.tenant_id).rows) == 1


def test_usage_is_filtered_by_day_and_paged(operator: Tenant, sessions: SessionFactory) -> None:
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=n) for n in range(5)]
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        for day in reversed(days):
            record_usage(uow, [UsageCount(operator.caller.tenant_id, day, None, 1, 2, 3)])

    first = operator.get("/admin/usage", params={"since": str(days[2]), "limit": 2}).json()
    rest = operator.get("/admin/usage", params={"since": str(days[2]), "limit": 2, "cursor": first["next"]}).json()
    assert [row["day"] for row in first["data"] + rest["data"]] == [str(day) for day in days[:3]]
    assert rest["next"] is None
    assert len(operator.get("/admin/usage").json()["data"]) == 5
    assert operator.get("/admin/usage", params={"since": "yesterday"}).status_code == 422


def test_more_rows_than_one_statement_takes_are_recorded(operator: Tenant, sessions: SessionFactory) -> None:
    first = datetime(2000, 1, 1, tzinfo=UTC).date()
    counts = [UsageCount(operator.caller.tenant_id, first + timedelta(days=n), None, 1, 1, 1) for n in range(2500)]
    for _ in range(2):
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            record_usage(uow, counts)
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        rows = usage_since(uow, operator.caller.tenant_id, first + timedelta(days=2499)).rows
    assert [row.requests for row in rows] == [2]
