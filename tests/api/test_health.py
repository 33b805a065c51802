"""Probes, request ids, and what happens when the database is away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text

from alignez_core.engines.fake.engine import FakeEngine
from api.app import create_app
from api.settings import ApiSettings
from cli.local_stack.postgres import PostgresServer
from profiles import migrate
from profiles.service import KeySpec, create_key, create_tenant
from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory
from tests.api.conftest import Tenant, serving


def test_alive_says_nothing_of_anything_else(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}


def test_ready_names_the_part_that_is_missing(client: TestClient) -> None:
    reply = client.get("/ready")
    assert reply.status_code == 503  # these tests have no broker
    assert int(reply.headers["retry-after"]) >= 1
    checks = reply.json()["checks"]
    assert [name for name, check in checks.items() if not check["ok"]] == ["broker"]
    assert set(checks) == {"database", "migrations", "broker", "model"}


def test_ready_when_everything_is_there(
    make_app: Any, engine: FakeEngine, postgres_url: str, redis_server: Any
) -> None:
    database = DatabaseSettings(database_url=postgres_url, broker_url=redis_server.url)
    with TestClient(make_app(engine, database=database)) as client:
        assert client.get("/ready").json()["status"] == "ready"


def test_not_ready_behind_the_migrations(make_app: Any, owner_sessions: SessionFactory) -> None:
    with TestClient(make_app(role="inference", engine=FakeEngine())) as client:
        assert client.get("/ready").status_code == 200
        with owner_sessions() as session, session.begin():
            head = session.scalars(text("DELETE FROM alembic_version RETURNING version_num")).one()
        try:
            checks = client.get("/ready").json()["checks"]
            assert checks["database"]["ok"]
            assert not checks["migrations"]["ok"]
            assert "alignez migrate" in checks["migrations"]["detail"]
        finally:
            with owner_sessions() as session, session.begin():
                session.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": head})


def test_every_answer_bears_a_request_id_and_takes_a_harmless_one_from_the_caller(client: TestClient) -> None:
    assert re.fullmatch(r"req_[0-9a-f]{24}", client.get("/health").headers["x-request-id"])
    given = client.get("/v1/jobs", headers={"x-request-id": "trace-1.2"})
    assert given.headers["x-request-id"] == "trace-1.2"
    assert given.json()["error"]["request_id"] == "trace-1.2"
    odd = client.get("/health", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"].startswith("req_")


def test_an_unforeseen_error_is_a_500_that_gives_nothing_away(make_app: Any, tenant: Tenant) -> None:
    engine = FakeEngine(error=RuntimeError("secret /etc/passwd"))
    with TestClient(make_app(engine)) as client:
        reply = client.post(
            "/v1/chat/completions",
            json={"model": "fake", "messages": [{"role": "user", "content": "x"}]},
            headers=tenant.headers,
        )
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert "Traceback" not in reply.text
        assert reply.json()["error"]["request_id"] == reply.headers["x-request-id"]


def test_without_the_database_calls_get_503_and_the_process_recovers(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path)
    server.start()
    try:
        migrate.upgrade(server.owner_url)
        database = DatabaseSettings(database_url=server.url, connect_timeout_s=2, pool_timeout_s=2)
        sessions = make_session_factory(database)
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            secret = create_key(uow, create_tenant(uow, "t").id, KeySpec("member", "k"))[1]
        header = {"Authorization": f"Bearer {secret}"}
        app = create_app(ApiSettings(auth_cache_s=60), engine=FakeEngine(), session_factory=sessions, database=database)
        chat = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        with TestClient(app) as client:
            assert client.get("/v1/jobs", headers=header).status_code == 200
            server.stop()
            for reply in (
                client.get("/v1/jobs", headers=header),
                client.get("/v1/jobs", headers={"Authorization": "Bearer az_other"}),
                client.post("/v1/chat/completions", json={**chat, "user": "anna"}, headers=header),
            ):
                assert reply.status_code == 503
                assert int(reply.headers["retry-after"]) >= 1
                assert "psycopg" not in reply.text
            assert client.get("/health").status_code == 200
            assert not client.get("/ready").json()["checks"]["database"]["ok"]
            # The bare model needs no database once the key is known.
            assert client.post("/v1/chat/completions", json=chat, headers=header).status_code == 200
            server.start()
            assert client.get("/v1/jobs", headers=header).status_code == 200
        sessions.kw["bind"].dispose()
    finally:
        server.stop()


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Stops all processes of a Postgres where they are: its kernel answers for it, it does not."""
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def test_a_database_that_hangs_is_given_up_and_serves_on_when_it_wakes(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        server.start()
        migrate.upgrade(server.owner_url)
        # The shared timeout is far beyond what this test would wait for.
        database = DatabaseSettings(database_url=server.url, connect_timeout_s=1, pool_size=2, statement_timeout_s=300)
        settings = ApiSettings(auth_cache_s=60, statement_timeout_s=0.2, ready_timeout_s=0.5)
        app = create_app(settings, engine=FakeEngine(), database=database)
        sessions = app.state.services.sessions
        with TestClient(app) as client:
            with UnitOfWork.open(sessions, PLATFORM) as uow:
                secret = create_key(uow, create_tenant(uow, "t").id, KeySpec("member", "k"))[1]
            header = {"Authorization": f"Bearer {secret}"}
            assert client.get("/v1/jobs", headers=header).status_code == 200
            with frozen(server):
                for _ in range(2):  # on a connection that was open, and on a new one
                    reply = client.get("/v1/jobs", headers=header)
                    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "database_unavailable")
                assert not client.get("/ready").json()["checks"]["database"]["ok"]
                assert client.get("/health").status_code == 200
            assert client.get("/v1/jobs", headers=header).status_code == 200
            assert client.get("/ready").json()["checks"]["database"]["ok"]


def test_a_full_disk_is_told_and_not_ready_until_there_is_room(
    make_app: Any, tenant: Tenant, postgres_url: str
) -> None:
    sessions = make_session_factory(postgres_url)
    bind = sessions.kw["bind"]

    def extend_nothing(*args: Any) -> None:
        if args[2].lstrip().startswith(("INSERT", "CREATE")):
            raise psycopg.errors.DiskFull("could not extend file: No space left on device")

    try:
        with TestClient(make_app(role="control", sessions=sessions)) as client:
            event.listen(bind, "before_cursor_execute", extend_nothing)
            assert client.get("/ready").json()["checks"]["database"]["ok"]  # nothing was written yet
            body = {"name": "p", "persona": {"preferred": "calm"}}
            reply = client.post("/v1/profiles", json=body, headers=tenant.headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "database_full")
            assert "disk is full" in reply.json()["error"]["message"]
            assert int(reply.headers["retry-after"]) >= 1
            assert client.get("/v1/profiles", headers=tenant.headers).status_code == 200
            for _ in range(2):
                checks = client.get("/ready").json()["checks"]
                assert not checks["database"]["ok"]
                assert "disk is full" in checks["database"]["detail"]
            event.remove(bind, "before_cursor_execute", extend_nothing)
            assert client.get("/ready").json()["checks"]["database"]["ok"]
            assert client.post("/v1/profiles", json=body, headers=tenant.headers).status_code == 202
    finally:
        bind.dispose()


def test_metrics_are_on_their_own_port_with_vllms_names(make_app: Any, tenant: Tenant) -> None:
    app = make_app(FakeEngine(), metrics_port=0)
    with TestClient(app) as client:
        port = app.state.services.metrics_port
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": True}
        assert client.post("/v1/chat/completions", json=body, headers=tenant.headers).status_code == 200
        assert client.get("/metrics").status_code == 404
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["alignez:time_to_first_token_seconds_count", ()] == 1
    assert samples["alignez:inter_token_latency_seconds_count", ()] == 1
    assert samples["alignez:num_requests_running", ()] == 0
    assert samples["alignez:num_requests_waiting", ()] == 0
    assert samples["alignez:generation_tokens_total", ()] > 1
    assert samples["alignez_edits_total", (("kind", "none"),)] == 1
    route = (("method", "POST"), ("route", "/v1/chat/completions"), ("status", "200"))
    assert samples["alignez_http_requests_total", route] == 1


def test_a_drained_process_finishes_what_runs_and_takes_nothing_new(make_app: Any, tenant: Tenant) -> None:
    app = make_app(FakeEngine(step_s=0.02))
    body = {"model": "fake", "max_tokens": 20, "ignore_eos": True, "stream": True,
            "messages": [{"role": "user", "content": "x"}]}  # fmt: skip
    with (
        serving(app) as (url, server),
        httpx.Client(timeout=20) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=tenant.headers) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        server.handle_exit(15, None)
        assert "data: [DONE]" in list(lines)
    assert app.state.services.draining.is_set()
