"""The end of a real API process: what runs is finished, or told in words; what comes is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from alignez_core.engines.fake.engine import FakeEngine
from tests.api.conftest import Tenant, serving
from tests.api.test_startup import environment, free_port

BODY = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "ignore_eos": True, "max_tokens": 300}


@contextmanager
def process(postgres_url: str, log: Path, drain_s: int) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """`python -m api.server` with the shipped model, ready to serve, and a client of it."""
    port = free_port()
    settings = {"ALIGNEZ_API_PORT": str(port), "ALIGNEZ_API_ROLE": "inference", "ALIGNEZ_API_DRAIN_S": str(drain_s)}
    with (
        log.open("wb") as output,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        server = subprocess.Popen(
            [sys.executable, "-m", "api.server"], env=environment(postgres_url, **settings), stderr=output
        )
        try:
            deadline = time.monotonic() + 120
            while not _has_model(client):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield server, client
        finally:
            server.kill()
            server.wait()


def _has_model(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/ready").json()["checks"]["model"]["ok"])
    except httpx.TransportError:
        return False


def _until_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    """Asks on new connections until the process takes no more; whoever is still let in gets an answer."""
    url = f"{client.base_url}/v1/chat/completions"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            reply = httpx.post(url, json={**BODY, "max_tokens": 1}, headers=headers, trust_env=False)
        except httpx.TransportError:
            return
        if reply.status_code == 503:
            return
        assert reply.status_code == 200
    raise AssertionError("new requests were taken all along")


@pytest.mark.slow
def test_a_stream_that_runs_at_sigterm_is_finished_and_new_requests_are_refused(
    postgres_url: str, tenant: Tenant, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with process(postgres_url, log, drain_s=60) as (server, client):
        # Eight rows in one response run for seconds.
        body = {**BODY, "stream": True, "n": 8}
        with client.stream("POST", "/v1/chat/completions", json=body, headers=tenant.headers) as reply:
            lines = reply.iter_lines()
            seen = [next(lines)]
            server.send_signal(signal.SIGTERM)
            _until_refused(client, tenant.headers)
            assert server.poll() is None
            seen += lines
        events = [json.loads(line.removeprefix("data: ")) for line in seen if line.startswith("data: {")]
        ends = [choice["finish_reason"] for event in events for choice in event["choices"]]
        assert ends.count("length") == 8
        assert not any("error" in event for event in events)
        assert [line for line in seen if line][-1] == "data: [DONE]"
        assert server.wait(20) in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()
    assert "drain_exceeded" not in log.read_text()


@pytest.mark.slow
def test_a_stream_past_the_drain_ends_with_an_error_event(postgres_url: str, tenant: Tenant, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process(postgres_url, log, drain_s=0) as (server, client):
        body = {**BODY, "stream": True, "n": 8, "max_tokens": 450}
        with client.stream("POST", "/v1/chat/completions", json=body, headers=tenant.headers) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        last = json.loads(rest[-1].removeprefix("data: "))
        assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "engine_closed")
        assert server.wait(20) in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()
    assert "drain_exceeded" in log.read_text()


def test_past_the_drain_whole_answers_are_a_503_and_streams_end_in_words(make_app: Any, tenant: Tenant) -> None:
    engine = FakeEngine(step_s=0.02)
    body = {**BODY, "model": "fake", "max_tokens": 500}
    with serving(make_app(engine, drain_s=0.3)) as (url, server), httpx.Client(timeout=20) as client:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, headers=tenant.headers, timeout=20))

        whole = threading.Thread(target=ask)
        whole.start()
        streamed = {**body, "stream": True}
        with client.stream("POST", f"{url}/v1/chat/completions", json=streamed, headers=tenant.headers) as reply:
            lines = reply.iter_lines()
            next(lines)
            deadline = time.monotonic() + 10
            while engine.running < 2:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            server.handle_exit(signal.SIGTERM, None)
            rest = [line for line in lines if line]
        whole.join(20)
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_closed"
    assert answers[0].status_code == 503
    assert int(answers[0].headers["retry-after"]) >= 1


def test_before_the_drain_it_serves_on_and_closes_each_connection_with_its_answer(
    make_app: Any, tenant: Tenant
) -> None:
    app = make_app(FakeEngine(step_s=0.002), drain_delay_s=600)
    body = {**BODY, "model": "fake", "max_tokens": 20}
    with serving(app) as (url, server), httpx.Client(base_url=url, timeout=20) as client:
        kept = client.post("/v1/chat/completions", json=body, headers=tenant.headers)
        assert "connection" not in kept.headers
        server.handle_exit(signal.SIGTERM, None)
        assert client.get("/ready").json()["checks"]["draining"]["ok"] is False
        for streamed in (False, True):  # on a connection of its own each, for each answer closes its own
            reply = client.post("/v1/chat/completions", json={**body, "stream": streamed}, headers=tenant.headers)
            assert reply.status_code == 200
            assert reply.headers["connection"] == "close"
        assert reply.text.rstrip().endswith("data: [DONE]")
        assert not server.should_exit
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit
        _until_refused(client, tenant.headers)


def test_after_the_delay_it_drains_by_itself(make_app: Any, tenant: Tenant) -> None:
    with serving(make_app(FakeEngine(), drain_delay_s=0.3)) as (url, server), httpx.Client(base_url=url) as client:
        server.handle_exit(signal.SIGTERM, None)
        _until_refused(client, tenant.headers)  # and no further signal


@pytest.mark.slow
def test_a_lost_model_ends_its_streams_in_words_and_the_process_to_be_started_again(
    postgres_url: str, tenant: Tenant, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with process(postgres_url, log, drain_s=20) as (server, client):
        body = {**BODY, "stream": True, "n": 8, "max_tokens": 450}
        with client.stream("POST", "/v1/chat/completions", json=body, headers=tenant.headers) as reply:
            lines = reply.iter_lines()
            next(lines)
            (model,) = _children(server.pid)
            os.kill(model, signal.SIGKILL)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_closed"
        assert server.wait(20) == 1
    assert log.read_text().splitlines()[-1].startswith("alignez: the engine's process has ended (signal 9")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_no_process_of_the_model_outlives_a_killed_server(postgres_url: str, tmp_path: Path) -> None:
    with process(postgres_url, tmp_path / "log", drain_s=20) as (server, _):
        (model,) = _children(server.pid)
        server.kill()
        server.wait()
        deadline = time.monotonic() + 20
        while _is_running(model):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
