"""How the process starts: roles, a model that cannot be loaded, an engine of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.engines.load import load_engine
from alignez_core.engines.process.engine import ProcessEngine
from alignez_core.errors import RequestTooLarge
from api.app import create_app
from api.settings import ApiSettings
from profiles.service import list_base_models
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.api.conftest import Tenant

CONTROL = """
import json, sys
from fastapi.testclient import TestClient
from api.app import create_app
from api.settings import ApiSettings
app = create_app(ApiSettings(role="control"))
with TestClient(app) as client:
    health = client.get("/health").status_code
    chat = client.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "x"}]},
                       headers={"Authorization": "Bearer " + sys.argv[1]})
    made = client.post("/v1/profiles", json={"name": "p", "persona": {"preferred": "calm"}},
                       headers={"Authorization": "Bearer " + sys.argv[1]})
loaded = [name for name in ("torch", "transformers", "vllm", "celery", "worker") if name in sys.modules]
print(json.dumps([health, chat.status_code, made.status_code, loaded]))
"""


def environment(postgres_url: str, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ALIGNEZ_")}
    return {**kept, "ALIGNEZ_DATABASE_URL": postgres_url, "OMP_NUM_THREADS": "1", **more}


def test_a_control_plane_process_serves_profiles_without_torch(tenant: Tenant, postgres_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONTROL, tenant.secret],
        env=environment(postgres_url), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [200, 404, 202, []]


@pytest.mark.slow
def test_a_missing_model_is_fatal_in_words_that_say_what_to_set(
    sessions: SessionFactory, database: Any, tmp_path: Path
) -> None:
    lines: list[str] = []
    settings = ApiSettings(model=str(tmp_path / "none"))
    app = create_app(settings, session_factory=sessions, database=database, on_fatal=lines.append)
    with TestClient(app) as client:
        deadline = time.monotonic() + 60
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        (line,) = lines
        assert "ALIGNEZ_MODEL" in line
        assert "\n" not in line
        assert not client.get("/ready").json()["checks"]["model"]["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "empty", "corrupt"])
def test_a_model_that_cannot_be_loaded_ends_the_process_with_one_line(
    tmp_path: Path, postgres_url: str, kind: str
) -> None:
    path = tmp_path / "model"
    if kind != "missing":
        path.mkdir()
    if kind == "corrupt":
        (path / "config.json").write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "api.server"],
        env=environment(postgres_url, ALIGNEZ_MODEL=str(path), ALIGNEZ_API_PORT="0", ALIGNEZ_API_LOG_LEVEL="error"),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert "ALIGNEZ_MODEL" in line
    assert "model" in line


@pytest.mark.slow
def test_the_process_ends_cleanly_on_a_signal(postgres_url: str) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "api.server"],
        env=environment(postgres_url, ALIGNEZ_API_PORT=str(port), ALIGNEZ_API_ROLE="control"),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    # uvicorn raises the signal again when it has finished, so that the parent sees why.
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in log
    assert all(json.loads(line)["event"] for line in log.splitlines() if line)


def test_the_served_model_is_registered_so_that_profiles_can_name_it(
    make_app: Any, sessions: SessionFactory, tenant: Tenant
) -> None:
    with TestClient(make_app(FakeEngine(name="brand-new"), model_name="served-as")):
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            names = [row.name for row in list_base_models(uow)]
        assert "served-as" in names


def test_requests_before_the_model_is_loaded_are_told_to_come_back(make_app: Any, tenant: Tenant) -> None:
    app = make_app(FakeEngine())
    with TestClient(app) as client:
        model, app.state.services.model = app.state.services.model, None
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        reply = client.post("/v1/chat/completions", json=body, headers=tenant.headers)
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert not client.get("/ready").json()["checks"]["model"]["ok"]
        app.state.services.model = model


def test_the_model_is_named_for_all_processes_or_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNEZ_MODEL", "shared")
    assert ApiSettings().model == "shared"
    monkeypatch.setenv("ALIGNEZ_API_MODEL", "own")
    assert ApiSettings().model == "own"
    assert ApiSettings(model="given").model == "given"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_engine_is_loaded_with_the_limits_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_RUNNING", "3"), ("MAX_CACHE_TOKENS", "300")):
        monkeypatch.setenv(f"ALIGNEZ_API_{name}", value)
    engine = load_engine(ApiSettings().engine_options())
    try:
        assert isinstance(engine, ProcessEngine)
        assert engine.load_now.max_slots == 3
        with pytest.raises(RequestTooLarge, match="300 tokens"):
            engine.generate([GenerationRequest([5] * 200, 150)])
    finally:
        engine.close()
