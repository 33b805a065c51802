"""kill -9 of any process at any moment: the job ends succeeded, no pair is doubled, nothing is lost."""

from __future__ import annotations

import os
import shutil
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
from cli.local_stack.process import free_port
from profiles import migrate
from profiles.errors import DatabaseUnavailable
from profiles.fitting.request import FitRequest
from profiles.models import (
    Evaluation,
    FitQueryRow,
    Job,
    JobStatus,
    JobText,
    PreferencePairRow,
    QueryRepresentations,
)
from profiles.service import Caller, cancel_job
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory
from tests.conftest import empty_tables
from tests.factories import Factory
from tests.rabbitmq import RABBITMQ_URL, delete_queue, require_rabbitmq
from tests.worker.processes import RELAY, WORKER, Processes, job_of, kill_tree, model_process, terminate, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

#: Fitted on, all of them; two more of the bank prove it.
N_QUERIES, HELD_OUT = 20, 2


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of its own, for these tests kill it."""
    with PostgresServer(tmp_path_factory.mktemp("killed-postgres")) as server:
        migrate.upgrade(server.owner_url)
        yield server


@pytest.fixture
def sessions(database: PostgresServer) -> Iterator[SessionFactory]:
    factory = make_session_factory(database.url)
    yield factory
    owner = sessionmaker(create_engine(database.owner_url))
    empty_tables(owner)
    for each in (factory, owner):
        each.kw["bind"].dispose()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


Start = Callable[[str], Processes]


@pytest.fixture
def start_on(database: PostgresServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Makes the processes of one test; prints their logs when it fails."""
    made: list[Processes] = []

    def start(broker_url: str) -> Processes:
        processes = Processes(database.url, broker_url, f"test-{uuid.uuid4().hex[:12]}", tmp_path)
        made.append(processes)
        return processes

    yield start
    for processes in made:
        processes.close()
        print(processes.log())


@pytest.fixture
def processes(start_on: Start, broker: RedisServer) -> Processes:
    return start_on(broker.url)


def test_worker_killed_in_the_middle_of_a_fit_on_redis(processes: Processes, sessions: SessionFactory) -> None:
    request = ask(sessions)
    processes.start(RELAY)
    worker = processes.start(WORKER)
    wait_for(lambda: finished_texts(sessions) >= 8)
    kill_tree(worker)
    before = finished_texts(sessions)
    processes.start(WORKER)
    ended = wait_for_success(sessions, request)
    assert ended.attempt == 2
    assert before >= 8
    assert_complete(sessions)
    assert_resumed(sessions, request)


def test_model_process_killed_under_its_parent(processes: Processes, sessions: SessionFactory) -> None:
    request = ask(sessions)
    processes.start(RELAY)
    worker = processes.start(WORKER)
    wait_for(lambda: finished_texts(sessions) >= 8)
    assert model_process(worker).nice() == min(19, os.nice(0) + 10)  # behind live traffic
    model_process(worker).kill()
    wait_for_success(sessions, request)
    assert_complete(sessions)


@pytest.mark.rabbitmq
def test_worker_killed_in_the_middle_of_a_fit_on_rabbitmq(start_on: Start, sessions: SessionFactory) -> None:
    require_rabbitmq()
    processes = start_on(RABBITMQ_URL)
    try:
        request = ask(sessions)
        processes.start(RELAY)
        worker = processes.start(WORKER)
        wait_for(lambda: finished_texts(sessions) >= 8)
        kill_tree(worker)
        processes.start(WORKER)
        wait_for_success(sessions, request)
        assert_complete(sessions)
        assert_resumed(sessions, request)
    finally:
        processes.close()
        delete_queue(processes.queue)


def test_relay_killed_before_it_could_publish(
    processes: Processes, sessions: SessionFactory, broker: RedisServer
) -> None:
    broker.stop()
    request = ask(sessions)
    relay = processes.start(RELAY)
    wait_for(lambda: "relay_waits" in processes.log(), what="a relay without broker")
    kill_tree(relay)
    broker.start()
    processes.start(RELAY)
    processes.start(WORKER)
    assert wait_for_success(sessions, request).attempt == 1
    assert_complete(sessions)


def test_postgres_killed_in_the_middle_of_a_fit(
    processes: Processes, sessions: SessionFactory, database: PostgresServer
) -> None:
    request = ask(sessions)
    processes.start(RELAY)
    processes.start(WORKER)
    wait_for(lambda: finished_texts(sessions) >= 8)
    kill_postgres(database)
    with pytest.raises(DatabaseUnavailable):
        finished_texts(sessions)
    database.start()
    wait_for_success(sessions, request)
    assert_complete(sessions)


def test_broker_killed_and_its_data_wiped(processes: Processes, sessions: SessionFactory, broker: RedisServer) -> None:
    running, waiting = ask(sessions), ask(sessions)
    processes.start(RELAY)
    processes.start(WORKER)
    wait_for(lambda: finished_texts(sessions) >= 8)
    wait_for(lambda: job_of(sessions, waiting.job).sent_at, what="the second message")
    wipe(broker)
    wait_for_success(sessions, running)
    wait_for_success(sessions, waiting)
    assert_complete(sessions, versions=2)


def test_worker_told_to_stop_hands_its_job_back_at_once(processes: Processes, sessions: SessionFactory) -> None:
    request = ask(sessions)
    processes.start(RELAY)
    worker = processes.start(WORKER)
    wait_for(lambda: finished_texts(sessions) >= 8)
    assert terminate(worker) == 0
    handed_back = job_of(sessions, request.job)
    assert (handed_back.status, handed_back.failures) == (JobStatus.QUEUED, 0)
    processes.start(WORKER)
    wait_for_success(sessions, request)
    assert_complete(sessions)


def test_worker_and_relay_tell_prometheus_what_they_do(processes: Processes, sessions: SessionFactory) -> None:
    def sample(port: int, name: str, **labels: str) -> float | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                text = reply.read().decode()
        except OSError:
            return None  # not there yet
        families = text_string_to_metric_families(text)
        found = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}
        return found.get((name, tuple(sorted(labels.items()))))

    ports = {module: free_port() for module in (RELAY, WORKER)}
    processes.start(RELAY, settings={"ALIGNEZ_WORKER_METRICS_PORT": str(ports[RELAY])})
    request = ask(sessions)
    wait_for(lambda: sample(ports[RELAY], "alignez_jobs", status="queued") == 1, what="the backlog")
    processes.start(WORKER, settings={"ALIGNEZ_WORKER_METRICS_PORT": str(ports[WORKER])})
    wait_for(lambda: sample(ports[WORKER], "alignez_worker_busy") == 1, what="a busy worker")
    wait_for_success(sessions, request)
    wait_for(lambda: sample(ports[WORKER], "alignez_fit_attempts_total", outcome="succeeded") == 1)
    wait_for(lambda: sample(ports[RELAY], "alignez_jobs", status="running") == 0)
    assert (sample(ports[RELAY], "alignez_relay_messages_total") or 0) >= 1


def test_relay_told_to_stop_ends_cleanly(processes: Processes, sessions: SessionFactory) -> None:
    relay = processes.start(RELAY)
    request = ask(sessions)
    wait_for(lambda: job_of(sessions, request.job).sent_at)
    assert terminate(relay, 5.0) == 0


def test_cancel_reaches_a_running_fit(processes: Processes, sessions: SessionFactory) -> None:
    request = ask(sessions)
    processes.start(RELAY)
    processes.start(WORKER)
    wait_for(lambda: finished_texts(sessions) >= 8)
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        key = uow.session.get_one(Job, request.job.id)
        cancel_job(uow, Caller(None, key.tenant_id, Factory(uow).caller().role), request.job.id)
    wait_for(lambda: job_of(sessions, request.job).status is JobStatus.CANCELLED)


def test_model_that_cannot_be_loaded_ends_the_worker_with_one_line(
    processes: Processes, sessions: SessionFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(sessions)
    worker = processes.start(WORKER, model=str(tmp_path / "nowhere"))
    assert worker.wait(60) == 1
    assert "alignez worker: no model directory at" in processes.log()
    assert "Traceback" not in processes.log()
    assert job_of(sessions, request.job).status is JobStatus.QUEUED


def ask(sessions: SessionFactory) -> FitRequest:
    """A committed job of `N_QUERIES` queries in chunks of four."""
    spec: dict[str, Any] = {
        "queries": [f"What is the use of thing number {i}?" for i in range(N_QUERIES)],
        "fit": {
            "method": "alignez", "chunk_size": 4, "answers": 4, "characteristics_tokens": 8, "answer_tokens": 8,
            "tune_queries": 0, "held_out_queries": HELD_OUT,
        },
    }  # fmt: skip
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        make = Factory(uow)
        return make.fit(make.caller(), spec=spec)


def finished_texts(sessions: SessionFactory) -> int:
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        return uow.session.query(PreferencePairRow).count()


def wait_for_success(sessions: SessionFactory, request: FitRequest) -> Job:
    def ended() -> Job | None:
        job = job_of(sessions, request.job)
        assert job.status not in (JobStatus.FAILED, JobStatus.CANCELLED), f"{job.error_code}: {job.error_message}"
        return job if job.status is JobStatus.SUCCEEDED else None

    return wait_for(ended, 90.0, "the job's success")


def assert_complete(sessions: SessionFactory, versions: int = 1) -> None:
    """Every query has exactly one pair, every version its verdict, and nothing else is left."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        pairs = uow.session.query(PreferencePairRow).all()
        assert len(pairs) == (N_QUERIES + HELD_OUT) * versions
        assert len({pair.query_id for pair in pairs}) == len(pairs)
        fitted = [pair for pair in pairs if pair.help_characteristics and pair.harm_characteristics]
        assert len(fitted) == N_QUERIES * versions
        # The fit reads prompts alone, so only held-out queries are answered under the persona.
        assert sum(pair.help_response is not None for pair in pairs) == HELD_OUT * versions
        assert uow.session.query(FitQueryRow).filter(FitQueryRow.embedding.is_not(None)).count() == len(fitted)
        assert uow.session.query(QueryRepresentations).count() == len(fitted)
        assert uow.session.query(Evaluation).count() == versions
        assert uow.session.query(JobText).count() == 0


def assert_resumed(sessions: SessionFactory, request: FitRequest) -> None:
    """The last attempt took over what the first had finished."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        version = uow.repository.catalog.version_by_id(request.version.id)
        assert version is not None
        assert version.diagnostics is not None
        assert version.diagnostics["last_attempt"]["resumed_texts"] >= 8


def kill_postgres(server: PostgresServer) -> None:
    """kill -9 of the postmaster; its backends notice and leave."""
    import os
    import signal

    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: server.pid is None)


def wipe(server: RedisServer) -> None:
    """kill -9 of the broker, its files removed, and a new one in its place."""
    import os
    import signal

    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: server.pid is None)
    for path in server.data_dir.iterdir():
        if path.name.startswith(("appendonly", "dump")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    server.start()
