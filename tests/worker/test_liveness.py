"""Signs of life: a stuck loop is noticed; a fit, a lost broker or database are not mistaken for one."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
from cli.local_stack.process import free_port
from profiles.models import JobStatus
from profiles.repository.jobs import Backlog
from profiles.uow import SessionFactory
from tests.worker.processes import RELAY, WORKER, Processes, job_of, model_process, wait_for
from tests.worker.test_processes import ask
from worker.liveness import Pulse, WatchedRelay
from worker.metrics import RelayMetrics

_PATIENCE_S = 1.5


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the pulse."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def test_a_loop_without_a_sign_of_life_is_stuck_after_its_patience(now: list[float]) -> None:
    pulse = Pulse(30.0)
    pulse.beat()
    now[0] += 29
    assert pulse.alive()
    now[0] += 2
    assert not pulse.alive()
    pulse.beat()
    assert pulse.alive()


def test_a_loop_that_starts_or_waits_for_a_server_is_not_stuck(now: list[float]) -> None:
    pulse = Pulse(30.0)
    now[0] += 9999
    assert pulse.alive()
    pulse.beat()
    pulse.rest()
    now[0] += 9999
    assert pulse.alive()


def test_timers_beat_several_times_within_the_patience() -> None:
    assert Pulse(300.0).interval_s == 5.0
    assert Pulse(3.0).interval_s == 1.0


@pytest.mark.parametrize(
    "event",
    [
        lambda relay: relay.sent(3),
        lambda relay: relay.swept(1, 2, Backlog(0, 0.0, 0, 0.0, 0)),
        lambda relay: relay.unavailable(),
    ],
    ids=["sent", "swept", "unavailable"],
)
def test_each_event_of_the_relay_is_a_sign_of_life(now: list[float], event: Callable[[WatchedRelay], None]) -> None:
    pulse, metrics = Pulse(30.0), RelayMetrics()
    pulse.beat()
    now[0] += 31
    event(WatchedRelay(metrics, pulse))
    assert pulse.alive()


def test_a_child_sees_the_signs_of_its_parent() -> None:
    pulse = Pulse(30.0)
    started, child = os.pipe()
    pid = os.fork()
    if pid == 0:
        deadline = time.monotonic() + 10
        while pulse.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.write(child, b"0" if pulse.alive() else b"1")
        os._exit(0)
    pulse._due.value = 0.0
    assert os.read(started, 1) == b"1"
    os.waitpid(pid, 0)
    os.close(started)
    os.close(child)


# Real processes


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def processes(postgres: PostgresServer, broker: RedisServer, tmp_path: Path) -> Iterator[Processes]:
    started = Processes(postgres.url, broker.url, "fits-alive", tmp_path, step_s=0.1)
    yield started
    started.close()
    print(started.log())


def _alive(port: int) -> int | None:
    """The status of `/alive`; None without an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/alive", timeout=2) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _watched(port: int, seconds: float) -> set[int | None]:
    """The statuses of `/alive` during some seconds."""
    statuses, deadline = set(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(seconds / 12)
        statuses.add(_alive(port))
    return statuses


def _settings(port: int, patience_s: float = _PATIENCE_S) -> dict[str, str]:
    return {"ALIGNEZ_WORKER_METRICS_PORT": str(port), "ALIGNEZ_WORKER_STUCK_AFTER_S": str(patience_s)}


@pytest.mark.slow
def test_a_worker_whose_parent_is_stuck_is_told_from_one_that_fits_or_waits_for_the_broker(
    processes: Processes, committed: SessionFactory, broker: RedisServer
) -> None:
    port = free_port()
    request = ask(committed)
    processes.start(RELAY)
    worker = processes.start(WORKER, settings=_settings(port))
    wait_for(lambda: job_of(committed, request.job).status is JobStatus.RUNNING, what="a fit")
    assert _watched(port, 2 * _PATIENCE_S) == {200}
    assert job_of(committed, request.job).status is JobStatus.RUNNING
    broker.stop()
    assert _watched(port, 4 * _PATIENCE_S) == {200}
    broker.start()
    wait_for(lambda: processes.log().count("Connected to") == 2, what="a second connection")
    time.sleep(2 * _PATIENCE_S)
    assert _alive(port) == 200
    worker.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: _alive(port) == 503, 20.0, "the parent's stop noticed")
    finally:
        worker.send_signal(signal.SIGCONT)
    wait_for(lambda: _alive(port) == 200, 20.0, "the parent's life noticed")
    child = model_process(worker)
    child.suspend()
    try:
        assert _alive(port) is None
    finally:
        child.resume()


@pytest.mark.slow
def test_a_relay_that_waits_is_not_stuck(processes: Processes, committed: SessionFactory, broker: RedisServer) -> None:
    port = free_port()
    processes.start(RELAY, settings=_settings(port, patience_s=7.0))  # its longest pause is 5 s
    wait_for(lambda: _alive(port) == 200, what="the relay")
    broker.stop()
    ask(committed)
    assert _watched(port, 15.0) == {200}
