"""The real worker with vLLM under it: it fits a profile or says what it cannot, and no process of vLLM outlives it."""

from __future__ import annotations

import contextlib
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from alignez_core.models import persona_nano
from cli.local_stack.broker import RedisServer
from profiles.fitting.request import FitRequest
from profiles.models import FINISHED, Job, JobStatus, ProfileVersion, VersionState
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.factories import Factory
from tests.worker.processes import (
    RELAY,
    WORKER,
    Processes,
    children,
    job_of,
    model_process,
    runs,
    terminate,
    wait_for,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

SETTINGS = {
    "ALIGNEZ_WORKER_ENGINE": "vllm",
    "ALIGNEZ_WORKER_VLLM_COMPILE": "false",
    "ALIGNEZ_WORKER_MAX_BATCH": "16",
    "ALIGNEZ_WORKER_LEASE_S": "20",
}


@pytest.fixture
def processes(
    committed: SessionFactory, postgres_url: str, redis_server: RedisServer, tmp_path: Path
) -> Iterator[Processes]:
    """Prints their logs when the test fails."""
    made = Processes(postgres_url, redis_server.url, f"test-{uuid.uuid4().hex[:12]}", tmp_path)
    yield made
    made.close()
    print(made.log())


def test_a_worker_on_vllm_fits_what_it_can_and_takes_vllm_with_it_when_told_to_stop(
    processes: Processes, committed: SessionFactory
) -> None:
    """`alignez` needs no more than an engine serves with; "auto" measures forms of `distill`, which reads block by
    block."""
    walks = ask(committed, {"method": "auto"})
    request = ask(committed, {"method": "alignez", "neighbors": 10, "tune_queries": 0, "held_out_queries": 6})
    processes.start(RELAY)
    worker = start_worker(processes)
    wait_for(lambda: ended(committed, request) or worker.poll() is not None, 240.0, "the fit")
    assert worker.poll() is None
    job = wait_for(lambda: finished(committed, walks), 60.0, "the end of the fit that vLLM cannot do")
    assert (job.status, job.error_code) == (JobStatus.FAILED, "engine_cannot_fit")
    assert "ALIGNEZ_WORKER_ENGINE=transformers" in (job.error_message or "")
    with UnitOfWork.open(committed, PLATFORM) as uow:
        version = uow.session.get_one(ProfileVersion, request.version.id)
        assert (version.state, version.method) == (VersionState.READY, "alignez")
        assert version.quality is not None  # judged; the paper's edit is near the gate on persona-nano
    started = children(worker.pid)
    assert terminate(worker, 60.0) == 0
    assert alive_after(started, 30.0) == []


def test_vllm_ends_with_a_model_process_that_is_killed_even_while_it_loads(processes: Processes) -> None:
    worker = start_worker(processes)
    core = wait_for(lambda: core_of(worker), 120.0, "vLLM's engine core")
    model_process(worker).kill()
    assert alive_after([core], 10.0) == []


def start_worker(processes: Processes) -> subprocess.Popen[bytes]:
    return processes.start(WORKER, model=str(persona_nano.MODEL_DIR), settings=SETTINGS)


def ask(sessions: SessionFactory, fit: dict[str, Any]) -> FitRequest:
    """A committed job for a style that persona-nano knows."""
    spec = {
        "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
        "queries": list(persona_nano.query_bank()[:32]),
        "fit": fit,
    }
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        make = Factory(uow)
        return make.fit(make.caller(), spec=spec)


def ended(sessions: SessionFactory, request: FitRequest) -> bool:
    job = job_of(sessions, request.job)
    assert job.status not in (JobStatus.FAILED, JobStatus.CANCELLED), f"{job.error_code}: {job.error_message}"
    return job.status is JobStatus.SUCCEEDED


def finished(sessions: SessionFactory, request: FitRequest) -> Job | None:
    job = job_of(sessions, request.job)
    return job if job.status in FINISHED else None


def core_of(worker: subprocess.Popen[bytes]) -> psutil.Process | None:
    """vLLM's process, once it runs code of its own."""
    for process in children(worker.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("VLLM::EngineCor"):
                return process
    return None


def alive_after(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Who of them is left."""
    deadline = time.monotonic() + timeout_s
    while (left := [p for p in processes if runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
