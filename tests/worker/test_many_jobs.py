"""Two hundred jobs while workers and the relay are killed at random: none is lost, none ends twice."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from cli.local_stack.broker import RedisServer
from profiles.models import Evaluation, Job, JobEvent, JobStatus, JobText, ProfileVersion, VersionState
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.conftest import all_rows
from tests.factories import Factory
from tests.rabbitmq import RABBITMQ_URL, delete_queue, require_rabbitmq
from tests.worker.processes import RELAY, WORKER, Processes, children, kill_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOBS = 200
#: More than a tenant may have waiting.
TENANTS = 4
SPEC = {
    "queries": [f"question {i}" for i in range(4)],
    "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
    "fit": {
        "method": "distill", "contrast": 0.0, "tune_queries": 0, "held_out_queries": 4, "answer_tokens": 8,
        "chunk_size": 16,
    },
}  # fmt: skip


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def processes(
    request: pytest.FixtureRequest, committed: SessionFactory, postgres_url: str, tmp_path: Path
) -> Iterator[Processes]:
    """On each broker; prints their logs when the test fails."""
    queue = f"test-{uuid.uuid4().hex[:12]}"
    if request.param == "redis":
        with RedisServer(tmp_path / "redis") as server:
            made = Processes(postgres_url, server.url, queue, tmp_path, step_s=0.0)
            yield made
            made.close()
    else:
        require_rabbitmq()
        made = Processes(postgres_url, RABBITMQ_URL, queue, tmp_path, step_s=0.0)
        yield made
        made.close()
        delete_queue(queue)
    print(made.log()[-20_000:])


def ask(sessions: SessionFactory) -> None:
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        make = Factory(uow)
        for _ in range(TENANTS):
            caller = make.caller()
            for _ in range(JOBS // TENANTS):
                make.fit(caller, spec=SPEC)


def unfinished(sessions: SessionFactory) -> int:
    with all_rows(sessions) as session:
        open_ = Job.status.in_([JobStatus.QUEUED, JobStatus.RUNNING])
        return session.scalars(select(func.count()).select_from(Job).where(open_)).one()


Group = list[subprocess.Popen[bytes]]


def kill_something(chance: random.Random, workers: Group, relays: Group) -> str:
    """A worker whole, only its process with the model, or the relay; returns what it was."""
    kind = chance.choice(["worker", "worker", "model", "relay"])
    if kind == "relay":
        kill_tree(relays[0])
    elif kind == "worker":
        kill_tree(chance.choice(workers))
    else:
        models = children(chance.choice(workers).pid, recursive=False)
        for model in models:
            with contextlib.suppress(psutil.NoSuchProcess):
                model.kill()
        kind = "model" if models else "none"
    return kind


def test_no_job_is_lost_and_none_ends_twice(processes: Processes, committed: SessionFactory) -> None:
    ask(committed)
    chance = random.Random(7)
    relays = [processes.start(RELAY)]
    workers = [processes.start(WORKER) for _ in range(2)]
    killed: Counter[str] = Counter()
    # By progress and not by time: a fast machine sees as many kills as a slow one. The last ones in peace, or chance
    # makes one fail by killing it too often.
    next_kill = JOBS - 5
    deadline = time.monotonic() + 400
    while (left := unfinished(committed)) > 0:
        assert time.monotonic() < deadline, f"{left} jobs are not finished"
        if 10 < left <= next_kill:
            killed[kill_something(chance, workers, relays)] += 1
            next_kill = left - chance.randint(8, 16)
        for group, module in ((relays, RELAY), (workers, WORKER)):
            for i, process in enumerate(group):
                if process.poll() is not None:
                    group[i] = processes.start(module)
        time.sleep(0.05)
    assert killed["worker"] >= 3
    assert killed["model"] + killed["relay"] >= 2
    with all_rows(committed) as session:
        statuses = Counter(session.scalars(select(Job.status)))
        ends = Counter(session.scalars(select(JobEvent.job_id).where(JobEvent.kind == "succeeded")))
        ready = session.scalars(
            select(func.count()).select_from(ProfileVersion).where(ProfileVersion.state == VersionState.READY)
        ).one()
        attempts = session.scalars(select(func.sum(Job.attempt))).one()
        evaluations = Counter(session.scalars(select(Evaluation.version_id)))
        scratch = session.scalars(select(func.count()).select_from(JobText)).one()
    assert statuses == {JobStatus.SUCCEEDED: JOBS}
    assert len(ends) == JOBS
    assert set(ends.values()) == {1}
    assert ready == JOBS
    assert len(evaluations) == JOBS
    assert set(evaluations.values()) == {1}
    assert scratch == 0
    assert attempts > JOBS, "no kill hit a running job, so nothing was shown"
