"""`/v1/jobs`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from httpx_sse import connect_sse

from profiles.models import Job, JobStatus
from profiles.uow import PLATFORM, UnitOfWork
from tests.api.conftest import Tenant, serving
from tests.api.events import parse
from tests.api.fitting import end_job, finish_fit


@pytest.fixture
def url(make_app: Any) -> Iterator[str]:
    with serving(make_app(role="control", job_poll_s=0.02)) as (url, _):
        yield url


def progress(tenant: Tenant, job: str, done: int) -> None:
    """What a worker reports."""
    with UnitOfWork.open(tenant.sessions, PLATFORM) as uow:
        row = uow.session.get_one(Job, UUID(job))
        uow.repository.jobs.set_progress(row, f"stage {done}", done, 3)


def test_jobs_are_listed_newest_first_and_by_status(tenant: Tenant, stranger: Tenant) -> None:
    first = tenant.pending("one")["job"]["id"]
    second = tenant.pending("two")["job"]["id"]
    stranger.pending("three")
    tenant.post(f"/v1/jobs/{first}/cancel")

    assert [row["id"] for row in tenant.get("/v1/jobs").json()["data"]] == [second, first]
    cancelled = tenant.get("/v1/jobs", params={"status": "cancelled"}).json()["data"]
    assert [row["id"] for row in cancelled] == [first]
    assert tenant.get("/v1/jobs", params={"status": "odd"}).status_code == 422


def test_a_queued_job_is_cancelled_at_once_and_once_is_enough(tenant: Tenant) -> None:
    job = tenant.pending("p")["job"]["id"]
    assert tenant.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelled"
    assert tenant.post(f"/v1/jobs/{job}/cancel").status_code == 200
    assert tenant.get("/v1/profiles/p/versions/1").json()["state"] == "failed"


def test_a_finished_job_cannot_be_cancelled(tenant: Tenant) -> None:
    made = tenant.pending("p")
    finish_fit(tenant.sessions, tenant.engine, UUID(made["version"]["id"]))
    reply = tenant.post(f"/v1/jobs/{made['job']['id']}/cancel")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "job_finished")


@pytest.mark.parametrize(("method", "path"), [("get", ""), ("post", "/cancel"), ("get", "/events")])
def test_unknown_and_foreign_jobs_look_the_same(tenant: Tenant, stranger: Tenant, method: str, path: str) -> None:
    job = tenant.pending("p")["job"]["id"]
    for ref in (job, uuid4(), "no-uuid"):
        assert getattr(stranger, method)(f"/v1/jobs/{ref}{path}").status_code == 404


def test_events_of_a_finished_job_come_at_once_and_end(tenant: Tenant) -> None:
    job = tenant.pending("p")["job"]["id"]
    progress(tenant, job, 1)
    end_job(tenant.sessions, UUID(job), JobStatus.FAILED, "out_of_memory")

    events = parse(tenant.get(f"/v1/jobs/{job}/events").text)
    assert [kind for _, kind, _ in events] == ["queued", "progress", "failed", "end"]
    assert events[1][2]["progress"] == {"stage 1": {"done": 1, "total": 3}}
    assert events[2][2]["error"]["code"] == "out_of_memory"
    assert events[3][2] == {"job": job, "status": "failed"}


def test_a_watcher_resumes_after_the_last_event_it_saw(tenant: Tenant) -> None:
    job = tenant.pending("p")["job"]["id"]
    progress(tenant, job, 1)
    progress(tenant, job, 2)
    end_job(tenant.sessions, UUID(job), JobStatus.FAILED, "x")

    whole = parse(tenant.get(f"/v1/jobs/{job}/events").text)
    for i, (seen, _, _) in enumerate(whole[:-1]):
        rest = tenant.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": seen})
        assert parse(rest.text) == whole[i + 1 :]
    assert parse(tenant.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "junk"}).text) == whole


def test_events_arrive_while_the_job_runs_and_the_stream_ends_with_it(tenant: Tenant, url: str) -> None:
    made = tenant.pending("p")
    job = made["job"]["id"]

    kinds = []
    with (
        httpx.Client(timeout=20) as client,
        connect_sse(client, "GET", f"{url}/v1/jobs/{job}/events", headers=tenant.headers) as source,
    ):
        assert source.response.headers["content-type"].startswith("text/event-stream")
        # The job goes on only when its last step has been seen: a stream that came at its end would never come.
        for event in source.iter_sse():
            kinds.append(event.event)
            if event.event == "queued" or kinds.count("progress") == 1:
                progress(tenant, job, 1 + kinds.count("progress"))
            elif event.event == "progress" and kinds.count("progress") == 2:
                finish_fit(tenant.sessions, tenant.engine, UUID(made["version"]["id"]))
    assert kinds[0] == "queued"
    assert kinds.count("progress") >= 2
    assert kinds[-2:] == ["succeeded", "end"]


def test_an_idle_watcher_holds_no_connection_and_gets_heartbeats(tenant: Tenant, make_app: Any) -> None:
    job = tenant.pending("p")["job"]["id"]
    app = make_app(role="control", job_poll_s=0.2, heartbeat_s=0.05)
    pool = app.state.services.sessions.kw["bind"].pool
    with (
        serving(app) as (url, server),
        httpx.Client(timeout=20) as client,
        client.stream("GET", f"{url}/v1/jobs/{job}/events", headers=tenant.headers) as reply,
    ):
        lines = reply.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": keep-alive"
        idle = 0
        for _ in range(20):
            time.sleep(0.005)
            idle += pool.checkedout() == 0
        assert idle >= 10
        # A process that is to end sends its watchers away instead of waiting for their jobs.
        server.handle_exit(15, None)
        assert not any(line.startswith("event: end") for line in lines)
