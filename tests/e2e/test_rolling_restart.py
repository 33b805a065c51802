"""Every process replaced under load: no request fails, no stream is cut, no job is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from bench.processes import Processes, Running
from cli.local_stack.broker import RedisServer
from profiles.models import Job, JobEvent, JobStatus
from profiles.uow import SessionFactory
from tests.conftest import all_rows
from tests.e2e.replicas import Balancer, Load, replicas_of, small_profile
from tests.worker.processes import model_process, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CALLERS = 4


@pytest.fixture
def replicas(postgres_url: str, tmp_path: Path) -> Iterator[Processes]:
    with RedisServer(tmp_path / "redis") as redis:
        with replicas_of(postgres_url, redis.url, tmp_path, ALIGNEZ_API_DRAIN_DELAY_S="2") as made:
            yield made
        print(made.logs())


def question(model: str, text: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}


QUESTIONS = [
    question(model, f"How do I start {hobby}?", tokens)
    for hobby, tokens in (("hiking", 8), ("painting", 40), ("sailing", 100))
    for model in ("persona-nano", "persona-nano@cheerful")
]


def first_profile(api: Running, headers: dict[str, str]) -> list[str]:
    """Makes the profile that is asked for, and returns the answer to every question, asked alone."""
    with httpx.Client(base_url=api.url, headers=headers, timeout=60, trust_env=False) as client:
        job = client.post("/v1/profiles", json=small_profile("cheerful")).json()["job"]["id"]
        wait_for(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "succeeded", 90, "the first profile")
        # Without a proof it is weak.
        promoted = client.post("/v1/profiles/cheerful/promote", json={"version": 1, "force": True})
        assert promoted.status_code == 200, promoted.text
        replies = [client.post("/v1/chat/completions", json=body).json() for body in QUESTIONS]
    return [reply["choices"][0]["message"]["content"] for reply in replies]


def start_all(replicas: Processes, headers: dict[str, str]) -> tuple[dict[str, list[Running]], Load]:
    running = {role: [replicas.start(role) for _ in range(2)] for role in ("relay", "worker", "api")}
    answers = first_profile(running["api"][0], headers)
    return running, Load(Balancer(running["api"], headers), QUESTIONS, answers)


def is_at_work(sessions: SessionFactory, worker: Running) -> bool:
    """Whether a fit runs on it now."""
    name = f"%:{model_process(worker.process).pid}"
    with all_rows(sessions) as session:
        statement = select(Job.id).where(Job.status == JobStatus.RUNNING, Job.worker.like(name))
        return session.scalars(statement).first() is not None


def test_nothing_is_lost_when_every_process_is_replaced_under_load(
    replicas: Processes, headers: dict[str, str], committed: SessionFactory
) -> None:
    running, load = start_all(replicas, headers)
    statuses: dict[str, int] = {}

    async def replace_all() -> None:
        async with load.running(CALLERS):
            await asyncio.sleep(2)
            for role in ("api", "worker", "relay"):
                for i, old in enumerate(list(running[role])):
                    load.phase = f"{role} {i} starts"
                    new = await asyncio.to_thread(replicas.start, role)
                    if role == "api":
                        load.balancer.add(new)
                    elif role == "worker":
                        await asyncio.to_thread(wait_for, lambda old=old: is_at_work(committed, old), 60, "a fit on it")
                    load.phase = f"{role} {i} ends"
                    statuses[load.phase] = await asyncio.to_thread(old.end)
                    running[role][i] = new
            load.phase = "after"
            await asyncio.sleep(1)
        await load.balancer.close()

    asyncio.run(replace_all())
    print(f"requests by kind and phase: {sorted(load.done.items())}, jobs: {len(load.jobs)}")
    assert load.failures == []
    for phase, status in statuses.items():
        # uvicorn ends by the signal that it answered.
        assert status in ((0, -15) if phase.startswith("api") else (0,)), statuses
    for phase in ("api 0 ends", "api 1 ends"):  # from SIGTERM to the end of the process
        for kind in ("stream", "whole", "read"):
            assert load.done[kind, phase] > 0, f"no {kind} while {phase}"

    def unfinished() -> int:
        with all_rows(committed) as session:
            statement = select(Job.status).where(Job.status.in_([JobStatus.QUEUED, JobStatus.RUNNING]))
            return len(session.scalars(statement).all())

    wait_for(lambda: unfinished() == 0, 240, "the end of all jobs")
    with all_rows(committed) as session:
        found = {str(id_): status for id_, status in session.execute(select(Job.id, Job.status))}
        ends = Counter(str(id_) for id_ in session.scalars(select(JobEvent.job_id).where(JobEvent.kind == "succeeded")))
    assert {found[job] for job in load.jobs} == {JobStatus.SUCCEEDED}
    assert {ends[job] for job in load.jobs} == {1}


def test_streams_that_are_cut_are_noticed(replicas: Processes, headers: dict[str, str]) -> None:
    """The load would see it if a replacement cut something off: here a replica is killed, and another one is there."""
    apis = [replicas.start("api") for _ in range(2)]
    replicas.start("relay")
    replicas.start("worker")
    # Long answers only, so that the kill falls into some of them.
    answers = first_profile(apis[0], headers)
    load = Load(Balancer(apis, headers), QUESTIONS[-2:], answers[-2:], pause_s=0.0)

    async def kill() -> None:
        async with load.running(8):
            await asyncio.sleep(1)
            async with asyncio.timeout(60):
                while load.streaming[apis[0].url] < 2:
                    await asyncio.sleep(0.001)
            load.phase = "killed"
            apis[0].kill()
            await asyncio.sleep(2)
        await load.balancer.close()

    asyncio.run(kill())
    assert load.done["stream", "killed"] > 0
    cut = [failure for failure in load.failures if "_stream" in failure and "without sending complete" in failure]
    assert cut, load.failures
