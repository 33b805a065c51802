"""What the dashboard and the alerts ask for is what a running stack exports, also as a real Prometheus reads it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import SMALL_ALIGNEZ, SMALL_FIT, Up
from tests.monitoring import ALERTS, alerts, expressions, panel_expressions, selectors
from tests.worker.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Offered by the API below, and not there: what a fit fails with.
NO_ENCODER = "./no-encoder"
#: Only an API on vLLM has slots.
VLLM_ONLY = {"alignez_plan_slots_live", "alignez_plan_slots_waiting"}
VLLM_PANELS = {"Plan slots of vLLM"}
#: Alerts about how long something took. On a busy machine their condition may hold for a moment.
OF_TIME = {"AlignezTimeToFirstTokenHigh", "AlignezPersonaliseSlow"}


def ask(client: httpx.Client, model: str, **body: Any) -> str:
    """An answer as it came, whole or as events."""
    messages = [{"role": "user", "content": "How do I start hiking?"}]
    reply = client.post("/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 24, **body})
    assert reply.status_code == 200, reply.text
    return reply.text


def use(up: Up, name: str) -> None:
    """What users do: profiles of both kinds are made, one is judged again, and answers are asked for with them and
    without."""
    queries = [f"How do I start {what}?" for what in ("hiking", "chess", "baking", "sailing", "painting", "running")]
    models = ["persona-nano"]
    for kind, fit in (("conditional", SMALL_ALIGNEZ), ("global", SMALL_FIT)):
        profile = f"{name}-{kind}"
        assert up.finished(up.create(profile, queries=queries, fit=fit))["status"] == "succeeded"
        models.append(f"persona-nano@{profile}#1")  # by its number: whatever its verdict
    with up.client() as client:
        asked = client.post(f"/v1/profiles/{profile}/versions/1/evaluate", json={"held_out_queries": 4})
        assert asked.status_code == 202, asked.text
        assert up.finished(asked.json()["job"]["id"])["status"] == "succeeded"
        for model in models:
            for _ in range(2):
                ask(client, model)
                assert ask(client, model, stream=True).endswith("data: [DONE]\n\n")


def meet_errors(up: Up) -> None:
    """What goes wrong sometimes: 404, a fit that fails, 429 and 503. Their series begin with the first of them."""
    with up.client() as client:
        assert client.get("/v1/profiles/nobody").status_code == 404
    persona = {"preferred": "cheerful", "dispreferred": "gloomy"}
    fit = {**SMALL_ALIGNEZ, "query_encoder": NO_ENCODER}
    with up.client() as client:
        bodies = [{"name": f"fails-{i}", "persona": persona, "fit": fit} for i in range(8)]
        replies = [client.post("/v1/profiles", json=body) for body in bodies]
    assert {reply.status_code for reply in replies} == {202, 429}, replies[0].text
    jobs = [up.finished(reply.json()["job"]["id"]) for reply in replies if reply.status_code == 202]
    assert {job["status"] for job in jobs} == {"failed"}, jobs
    before = up.run["pids"]["postgres"]
    os.kill(before, signal.SIGKILL)
    with up.client() as client:
        wait_for(lambda: client.get("/v1/profiles").status_code == 503, 10, "503 without a database")
        wait_for(lambda: up.run["pids"]["postgres"] not in (None, before), 60, "a new Postgres")
        wait_for(lambda: client.get("/ready").status_code == 200, 60, "a stack that is ready again")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack that has seen everything that a series could be waiting for."""
    settings = {"ALIGNEZ_MAX_QUEUED_JOBS": "2", "ALIGNEZ_API_QUERY_ENCODERS": json.dumps([NO_ENCODER])}
    up = Up(tmp_path_factory.mktemp("metrics") / "data", settings=settings).start()
    try:
        use(up, "first")
        meet_errors(up)
        yield up
    finally:
        up.stop()


def scraped(up: Up) -> dict[str, list[dict[str, str]]]:
    """Labels of each series by its name, of all processes."""
    found: dict[str, list[dict[str, str]]] = {}
    for url in up.run["metrics_urls"].values():
        for family in text_string_to_metric_families(httpx.get(url, trust_env=False).text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_every_series_that_is_asked_for_is_scraped_from_a_running_stack(used: Up) -> None:
    assert set(used.run["metrics_urls"]) == {"api", "worker", "relay"}
    series = scraped(used)
    asked = {selector for _, expression in expressions() for selector in selectors(expression)}
    assert len(asked) > 30
    missing = {s for s in asked if not any(s.selects(labels) for labels in series.get(s.name, []))}
    assert {selector.name for selector in missing} == VLLM_ONLY
    assert not VLLM_ONLY & series.keys()


class Prometheus:
    """A real one, which scrapes a stack as the chart's ServiceMonitor has it scraped."""

    def __init__(self, directory: Path, up: Up) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        config = directory / "prometheus.yml"
        config.write_text(json.dumps(self._config(up.run["metrics_urls"])))  # JSON is YAML
        self.log = directory / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @staticmethod
    def _config(urls: dict[str, str]) -> dict[str, Any]:
        # The API of one machine does what control and inference do apart.
        roles = {"control": "api", "inference": "api", "worker": "worker", "relay": "relay"}
        jobs = []
        for component, role in roles.items():
            service = f"rel-alignez-{component}"
            labels = {"namespace": "ns", "service": service, "pod": f"{service}-0"}
            target = {"targets": [urlsplit(urls[role]).netloc], "labels": labels}
            jobs.append({"job_name": service, "static_configs": [target]})
        return {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": jobs,
        }

    def get(self, path: str, **parameters: str) -> Any:
        reply = self._client.get(path, params=parameters).json()
        assert reply["status"] == "success", (parameters, reply)
        return reply["data"]

    def values(self, expression: str) -> list[float]:
        """What the expression comes to now, NaN left out."""
        found = [float(each["value"][1]) for each in self.get("/api/v1/query", query=expression)["result"]]
        return [value for value in found if not math.isnan(value)]

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            assert self._process.poll() is None, self.log.read_text()
            return False

    def wait_scrapes(self) -> None:
        """Returns once every target has been scraped twice from now on."""
        now = float(self.get("/api/v1/query", query="time()")["result"][1])
        scraped_since = f"min(up) == 1 and min(timestamp(up)) >= {now + 2}"
        wait_for(lambda: self.values(scraped_since), 60, "two scrapes of every target")

    def stop(self) -> None:
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def prometheus(used: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen the stack in use; what went wrong before is not news to it."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus on PATH")
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), used)
    try:
        wait_for(server.ready, 60, "a Prometheus that is ready")
        server.wait_scrapes()
        use(used, "second")
        server.wait_scrapes()
        yield server
    finally:
        server.stop()


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    shown: dict[str, list[float]] = {}
    for title, expression in panel_expressions():
        asked = expression.replace("$namespace", "ns").replace("$__rate_interval", "2m")
        assert "$" not in asked, asked
        values = prometheus.values(asked)
        if not values:
            assert title in VLLM_PANELS, (title, asked)
        shown.setdefault(title, []).extend(values)
    assert {title for title, values in shown.items() if not values} == VLLM_PANELS
    # Not only there: what `use` did can be seen.
    for title in ("Requests by status", "Tokens per second", "Attempts at fits by how they ended", "Answers by edit"):
        assert max(shown[title]) > 0, title


def test_the_dashboard_finds_the_namespace(prometheus: Prometheus) -> None:
    found = prometheus.get("/api/v1/label/namespace/values", **{"match[]": "alignez_engine_ready"})
    assert found == ["ns"]


def test_the_alerts_load_and_are_silent_on_a_healthy_stack(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("/api/v1/rules")["groups"]
    rules = {rule["name"]: rule for rule in group["rules"]}
    assert rules.keys() == {alert["alert"] for alert in alerts()}
    assert {rule["health"] for rule in rules.values()} == {"ok"}, rules
    assert not [name for name, rule in rules.items() if rule["state"] == "firing"]
    assert {name for name, rule in rules.items() if rule["state"] != "inactive"} <= OF_TIME
