"""The one-machine stack with the shipped model, from outside: personalised answers, kills, restarts, endings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from alignez_core.models.persona_nano import query_bank
from alignez_core.models.persona_nano.style import style_of
from tests.e2e.conftest import SMALL_ALIGNEZ, SMALL_FIT, Up
from tests.worker.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROLES = {"api", "worker", "relay", "postgres", "broker"}
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How do I start hiking?"}]


def test_run_json_names_the_url_the_key_and_every_process(stack: Up) -> None:
    run = stack.run
    assert run["url"].startswith("http://127.0.0.1:")
    assert Path(run["key_file"]).stat().st_mode & 0o077 == 0
    assert set(run["pids"]) >= ROLES
    assert all(psutil.pid_exists(pid) for pid in run["pids"].values())


def test_run_json_names_the_metrics_of_every_process(stack: Up) -> None:
    names = {"api": "alignez_engine_ready", "worker": "alignez_worker_ready", "relay": "alignez_outbox_messages"}
    assert set(stack.run["metrics_urls"]) == set(names)
    for role, url in stack.run["metrics_urls"].items():
        assert names[role] in httpx.get(url).text


def test_a_persona_becomes_a_personalised_answer_for_an_end_user(stack: Up) -> None:
    job = stack.finished(stack.create("cheerful"))
    assert job["status"] == "succeeded"
    with stack.client() as client:
        events = client.get(f"/v1/jobs/{job['id']}/events").text
        assert events.count("event: succeeded") == 1
        version = client.get("/v1/profiles/cheerful/versions/1").json()
        assert version["quality"] == "good", version["quality_reasons"]
        report = client.get("/v1/profiles/cheerful/versions/1/report").json()
        assert report["report"]["comparisons"]["over_bare"]["net"] > 0.4
        assert report["choice"]["trace"]
        assert client.put("/v1/users/ada/profile", json={"profile": "cheerful"}).status_code == 200
    with (
        OpenAI(base_url=f"{stack.run['url']}/v1", api_key=stack.key) as plain,
        OpenAI(base_url=f"{stack.run['url']}/v1/users/ada", api_key=stack.key) as ada,
    ):
        styles = []
        for seed in range(8):
            answer = ada.chat.completions.create(model="persona-nano", messages=QUESTION, seed=seed, temperature=0.8)
            assert answer.model_extra is not None
            assert answer.model_extra["alignez"]["sha256"] == version["sha256"]
            styles.append(style_of(answer.choices[0].message.content or ""))
        assert styles.count("cheerful") >= 6
        bare = plain.chat.completions.create(model="persona-nano", messages=QUESTION, seed=1, temperature=0)
        assert style_of(bare.choices[0].message.content or "") != "cheerful"
        streamed = ada.chat.completions.create(
            model="persona-nano", messages=QUESTION, seed=3, temperature=0.8, stream=True
        )
        whole = ada.chat.completions.create(model="persona-nano", messages=QUESTION, seed=3, temperature=0.8)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert text == whole.choices[0].message.content


def test_a_persona_that_the_model_cannot_express_is_weak_and_says_why(stack: Up) -> None:
    job_id = stack.create("zorbly", persona={"preferred": "zorbly", "dispreferred": "quaxic"})
    assert stack.finished(job_id)["status"] == "succeeded"
    with stack.client() as client:
        version = client.get("/v1/profiles/zorbly/versions/1").json()
    assert version["quality"] == "weak"
    assert any("hardly distinguishes" in reason for reason in version["quality_reasons"])


def test_a_second_stack_on_the_same_data_is_refused_in_one_line(stack: Up) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "cli.main", "up", "--port", "0", "--data-dir", str(stack.data_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert "Traceback" not in second.stdout + second.stderr
    assert len(second.stderr.strip().splitlines()) == 1


def runs_anew(up: Up, role: str, before: int) -> bool:
    """Whether the supervisor has another process of the role than `before`."""
    return up.run["pids"][role] not in (None, before)


def test_a_fit_survives_the_death_of_every_part(tmp_path: Path) -> None:
    up = Up(tmp_path / "data").start()
    try:
        queries = [{"text": f"{text} ({i})"} for i in range(4) for text in query_bank()]
        job_id = up.create("survivor", queries=queries, fit=SMALL_ALIGNEZ)
        wait_for(lambda: up.job(job_id)["progress"].get("characteristics", {}).get("done", 0) > 0, 60, "a chunk")
        for victim in ("worker", "relay", "postgres", "broker"):
            before = up.run["pids"][victim]
            os.kill(before, signal.SIGKILL)
            if victim == "broker":
                for file in (up.data_dir / "broker").rglob("*.aof*"):
                    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
            wait_for(partial(runs_anew, up, victim, before), 60, f"a new {victim}")
        job = up.finished(job_id, 240)
        assert job["status"] == "succeeded", job
        stored = up.queries("survivor")
        assert sorted(stored) == sorted(query["text"] for query in queries)
    finally:
        up.stop()


def test_profile_and_key_survive_a_restart_and_sigterm_leaves_nothing(tmp_path: Path) -> None:
    up = Up(tmp_path / "data").start()
    key = up.key
    assert up.finished(up.create("kept", fit=SMALL_FIT))["status"] == "succeeded"
    family = up.family()
    assert up.stop() == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not up.run_file.exists()
    again = Up(tmp_path / "data").start()
    try:
        assert again.key == key
        wait_for(lambda: again.output().count("Ctrl-C stops everything") == 2, 30, "the second welcome")
        assert again.output().count(key) == 1  # shown once, by the start that made it
        with again.client() as client:
            body = {"model": "persona-nano@kept#1", "messages": QUESTION, "seed": 1}
            assert client.post("/v1/chat/completions", json=body).json()["alignez"]["version"] == 1
        family = again.family()
        again.process.kill()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
    finally:
        again.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as somebody else")
def test_it_runs_as_a_normal_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    nobody = 65534
    # The environment may lie where only root may read (an interpreter under /root): being able to read everything is
    # the one thing this user keeps, which changes nothing about what it may write or run as.
    to_nobody = (
        "setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    )  # fmt: skip
    if subprocess.run([*to_nobody, sys.executable, "-c", "import cli.main"], check=False).returncode:
        pytest.skip("this machine has no setpriv, or may not hand on the capability to read everything")
    home = tmp_path_factory.mktemp("home")
    for folder in (home, home.parent, home.parent.parent):
        folder.chmod(0o755)
    os.chown(home, nobody, nobody)
    up = Up(home / "data", to_nobody).start()
    try:
        assert all(psutil.Process(pid).uids().real == nobody for pid in up.run["pids"].values())
        assert up.finished(up.create("cheerful", fit=SMALL_FIT))["status"] == "succeeded"
    finally:
        up.stop()


def test_the_demo_shows_the_effect_and_leaves_nothing_running() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "demo", "--model", "nano", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    figures_text, printed = demo.communicate(timeout=400)
    assert demo.returncode == 0, printed
    figures = json.loads(figures_text)
    assert set(figures) == {"model", "persona", "quality", "reasons", "chosen", "report", "answers", "seconds"}
    assert figures["model"] == "nano"
    assert figures["quality"] == "good", figures["reasons"]
    assert figures["report"]["comparisons"]["over_bare"]["net"] > 0.4
    answers = figures["answers"]
    assert set(answers) == {"bare", "prompt", "profile"}
    assert {len(column) for column in answers.values()} == {4}
    assert all(answer.strip() for column in answers.values() for answer in column)
    assert all(a != b for a, b in zip(answers["bare"], answers["profile"], strict=True))
    assert f"verdict: {figures['quality']}" in printed
    assert not [p for p in psutil.process_iter() if _session(p) == demo.pid]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None
