"""Alerts, dashboard and triggers ask only for metrics that API, worker and relay export."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import promql_parser
import pytest
import yaml
from prometheus_client.metrics_core import Metric

from api.metrics import EngineCollector, Metrics
from tests.helm.charts import CHART, find, nested, render
from tests.monitoring import ALERTS, DASHBOARD, NAME, TARGET_LABELS, alerts, expressions, panels
from worker.metrics import RelayMetrics, WorkerMetrics

pytestmark = pytest.mark.helm

#: An engine that says everything that an engine can say.
_BUSY = SimpleNamespace(
    load_now=SimpleNamespace(running=0, waiting=0, max_slots=0),
    slot_counts=SimpleNamespace(live=0, waiting=0, hits=0, loads=0, evictions=0),
)


def _exported() -> dict[str, set[str]]:
    """Label names by the name of each time series, as Prometheus stores it, of API, worker and relay."""
    found: dict[str, set[str]] = {}
    # prometheus_client has no public way to a metric's label names.
    for metrics in (Metrics(), WorkerMetrics(), RelayMetrics()):
        labels = {each._name: set(each._labelnames) for each in vars(metrics).values() if hasattr(each, "_labelnames")}
        for family in metrics.registry.collect():
            found |= _series(family, labels[family.name])
    for family in EngineCollector(_BUSY).collect():
        found |= _series(family, set())
    return found


def _series(family: Metric, labels: set[str]) -> dict[str, set[str]]:
    if family.type == "counter":
        return {f"{family.name}_total": labels}
    if family.type == "histogram":
        sums = {f"{family.name}_{suffix}": labels for suffix in ("sum", "count")}
        return sums | {f"{family.name}_bucket": labels | {"le"}}
    return {family.name: labels}


def _expressions() -> list[tuple[str, str]]:
    values = nested({"inference.autoscaling.enabled": True, "keda.prometheusAddress": "http://p:9090"})
    triggers = find(render(values), "ScaledObject", "-inference")["spec"]["triggers"]
    return expressions() + [(f"trigger {number}", each["metadata"]["query"]) for number, each in enumerate(triggers)]


@pytest.mark.parametrize(("where", "expression"), _expressions())
def test_an_expression_asks_for_metrics_that_there_are(where: str, expression: str) -> None:
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    asked = set(NAME.findall(without_strings))
    assert asked, where
    exported = _exported()
    assert asked <= exported.keys()
    # Labels that Prometheus adds, and those of the metrics themselves.
    known = TARGET_LABELS.union(*(exported[name] for name in asked))
    matched = {
        label for inside in re.findall(r"\{([^}]*)\}", without_strings) for label in re.findall(r"(\w+)\s*[=!]", inside)
    }
    grouped = {
        label.strip()
        for inside in re.findall(r"\b(?:by|on) \(([^)]*)\)", without_strings)
        for label in inside.split(",")
    }
    assert matched | grouped <= known


def test_a_metric_that_is_not_there_would_be_found() -> None:
    assert "alignez:num_requests_waiting" in _exported()
    assert "alignez_http_requests_total" in _exported()
    assert not {"alignez_http_requests", "alignez:gpu_cache_usage"} & _exported().keys()


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 6
    about = " ".join(rule["expr"] for rule in rules)
    for matter in (
        "up{",
        "outbox_oldest",
        "jobs_oldest_queued",
        "fit_attempts",
        "alignez_engine_ready",
        "num_requests_waiting",
        "time_to_first_token",
        'status="429"',
        'status=~"5.."',
    ):
        assert matter in about
    # A control pod exports engine_ready as 0 for ever: it has no model. So nobody may ask for its value.
    valued = re.findall(r"alignez_engine_ready(\S*) [=<>]", about)
    assert valued
    assert all("-inference" in selector for selector in valued)


def test_the_operations_page_knows_every_alert_and_no_other() -> None:
    page = (CHART.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(Alignez\w+)`", page)) == {alert["alert"] for alert in alerts()}


def test_the_rule_in_the_cluster_is_the_file() -> None:
    rule = find(render(nested({"monitoring.prometheusRule": True})), "PrometheusRule", "-alerts")
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text(encoding="utf-8"))


def test_the_dashboard_in_the_cluster_is_the_file() -> None:
    config = find(render(nested({"monitoring.dashboard": True})), "ConfigMap", "-dashboard")
    assert json.loads(config["data"]["alignez.json"]) == json.loads(DASHBOARD.read_text(encoding="utf-8"))


def test_the_dashboards_panels_do_not_overlap() -> None:
    cells: list[tuple[int, int]] = []
    for panel in panels():
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells += itertools.product(columns, range(place["y"], place["y"] + place["h"]))
    assert len(cells) == len(set(cells)) > 0
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_the_dashboard_shows_what_an_operator_asks_for_first() -> None:
    asked = set(NAME.findall(" ".join(target["expr"] for panel in panels() for target in panel["targets"])))
    first = {"engine_ready", "http_requests_total", "num_requests_running", "num_requests_waiting", "edits_total"}
    first |= {"time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket", "generation_tokens_total"}
    first |= {"personalise_seconds_bucket", "request_success_total", "jobs", "fit_attempts_total", "worker_ready"}
    assert first <= {re.sub("^alignez[:_]", "", name) for name in asked}


def test_files_are_where_the_templates_look() -> None:
    templates = " ".join(path.read_text(encoding="utf-8") for path in Path(CHART / "templates").rglob("*.yaml"))
    named = set(re.findall(r'\.Files\.Get "(files/[\w.]+)"', templates))
    assert named == {f"files/{path.name}" for path in (CHART / "files").iterdir()}
