"""Where pods run, and whom they may talk to."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk import environment_variables

from telemetry.tracing import TracingSettings
from tests.helm.charts import (
    KEDA,
    Manifest,
    configuration,
    container,
    find,
    kinds,
    merged,
    nested,
    pod,
    render,
)
from tests.helm.settings_env import read
from worker.settings import WorkerSettings

pytestmark = pytest.mark.helm


def test_placement_is_the_operators() -> None:
    settings = {
        "worker.nodeSelector": {"gpu": "a100"},
        "worker.priorityClassName": "low",
        "worker.runtimeClassName": "nvidia",
        "topologySpread.whenUnsatisfiable": "DoNotSchedule",
    }
    spec = pod(render(nested(settings)), "worker")
    assert (spec["nodeSelector"], spec["priorityClassName"], spec["runtimeClassName"]) == (
        {"gpu": "a100"},
        "low",
        "nvidia",
    )
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert {one["whenUnsatisfiable"] for one in spec["topologySpreadConstraints"]} == {"DoNotSchedule"}
    assert "topologySpreadConstraints" not in pod(render(nested({"topologySpread.enabled": False})), "worker")


def test_budgets_and_policies_can_be_left_out() -> None:
    manifests = render(nested({"podDisruptionBudgets.enabled": False, "networkPolicy.enabled": False}))
    assert not {"PodDisruptionBudget", "NetworkPolicy"} & kinds(manifests)
    budgets = [each for each in render() if each["kind"] == "PodDisruptionBudget"]
    assert {each["metadata"]["name"].rpartition("-")[2] for each in budgets} == {
        "control",
        "inference",
        "worker",
        "relay",
    }


def _peers(policy: Manifest, direction: str) -> list[Any]:
    key = "from" if direction == "ingress" else "to"
    return [peer for rule in policy["spec"][direction] for peer in rule.get(key, ["anywhere"])]


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def test_everything_is_denied_but_names() -> None:
    policy = find(render(nested({"networkPolicy.dnsCidrs": ["169.254.20.10/32"]})), "NetworkPolicy", "-default-deny")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy["spec"]
    assert _peers(policy, "egress") == [_namespace("kube-system"), {"ipBlock": {"cidr": "169.254.20.10/32"}}]
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {53}
    assert set(policy["spec"]["podSelector"]["matchLabels"]) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


def test_external_servers_are_reached_by_port_and_address() -> None:
    settings = {"database.external.cidrs": ["10.1.0.0/24"], "database.external.port": 6432, "broker.kind": "redis"}
    manifests = render(nested(settings))
    database = find(manifests, "NetworkPolicy", "-to-database")
    assert database["spec"]["egress"] == [
        {"ports": [{"port": 6432, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.1.0.0/24"}}]}
    ]
    broker = find(manifests, "NetworkPolicy", "-to-broker")
    assert broker["spec"]["egress"] == [{"ports": [{"port": 6379, "protocol": "TCP"}]}]
    tls = render(nested({"broker.external.port": 5671}))
    assert find(tls, "NetworkPolicy", "-to-broker")["spec"]["egress"][0]["ports"][0]["port"] == 5671


def test_apis_are_reached_by_proxies_clients_and_prometheus() -> None:
    policy = find(render(nested({"networkPolicy.clientNamespaces": ["apps"]})), "NetworkPolicy", "-to-apis")
    (requests,) = policy["spec"]["ingress"]
    assert requests["from"] == [_namespace("ingress-nginx"), _namespace("apps")]
    assert requests["ports"] == [{"port": "http", "protocol": "TCP"}]
    policy = find(render(), "NetworkPolicy", "-to-metrics")
    (scrapes,) = policy["spec"]["ingress"]
    assert (scrapes["from"], scrapes["ports"]) == ([_namespace("monitoring")], [{"port": "metrics", "protocol": "TCP"}])


def test_every_process_is_measured() -> None:
    manifests = render(nested({"monitoring.serviceMonitor": True}))
    everyone = ["control", "inference", "worker", "relay"]
    for each in (find(manifests, "ServiceMonitor", "-metrics"), find(manifests, "NetworkPolicy", "-to-metrics")):
        selector = each["spec"].get("selector") or each["spec"]["podSelector"]
        assert selector["matchExpressions"][0]["values"] == everyone
    for component in everyone:
        ports = container(manifests, component)["ports"]
        assert {"name": "metrics", "containerPort": 9100} in ports
        assert "metrics" in {port["name"] for port in find(manifests, "Service", f"-{component}")["spec"]["ports"]}
    settings = read(WorkerSettings, configuration(manifests, "worker"))
    assert isinstance(settings, WorkerSettings)
    assert (settings.metrics_host, settings.metrics_port) == ("0.0.0.0", 9100)


def test_keda_reaches_what_it_asks_and_only_then() -> None:
    servers = nested({"database.mode": "embedded", "broker.mode": "embedded"})
    assert _namespace("keda") not in _peers(find(render(servers), "NetworkPolicy", "-postgres"), "ingress")
    jobs = render(merged(servers, nested(KEDA)))
    assert _namespace("keda") in _peers(find(jobs, "NetworkPolicy", "-postgres"), "ingress")
    assert _namespace("keda") not in _peers(find(jobs, "NetworkPolicy", "-rabbitmq"), "ingress")
    broker = render(merged(servers, nested({**KEDA, "worker.autoscaling.source": "broker"})))
    rule = find(broker, "NetworkPolicy", "-rabbitmq")["spec"]["ingress"][1]
    assert (rule["from"], rule["ports"][0]["port"]) == ([_namespace("keda")], "management")


def test_the_hub_is_reached_by_who_loads_models_unless_nobody_may() -> None:
    policy = find(render(), "NetworkPolicy", "-to-hub")
    assert policy["spec"]["podSelector"]["matchExpressions"][0]["values"] == ["inference", "worker"]
    names = {each["metadata"]["name"] for each in render(nested({"networkPolicy.huggingFace": False}))}
    assert "rel-alignez-to-hub" not in names


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector.monitoring:4318", 4318), ("https://traces.example.org/otlp", 443), ("http://collector", 80)],
)
def test_traces_reach_their_collector(endpoint: str, port: int) -> None:
    manifests = render(nested({"tracing.endpoint": endpoint}))
    policy = find(manifests, "NetworkPolicy", "-to-collector")
    assert policy["spec"]["egress"] == [
        {"ports": [{"port": port, "protocol": "TCP"}], "to": [_namespace("monitoring")]}
    ]
    everywhere = render(nested({"tracing.endpoint": endpoint, "tracing.namespace": ""}))
    assert "to" not in find(everywhere, "NetworkPolicy", "-to-collector")["spec"]["egress"][0]
    for component in ("control", "inference", "worker"):  # the relay has the worker's
        environment = configuration(manifests, component)
        settings = read(TracingSettings, environment)
        assert isinstance(settings, TracingSettings)
        assert settings.endpoint == endpoint
        ours = {name for name in environment if name.startswith("OTEL_")}
        assert ours <= {value for name, value in vars(environment_variables).items() if name.startswith("OTEL_")}


@pytest.mark.parametrize(("url", "port"), [("http://judge.ns:8000/v1", 8000), ("https://judge.example.org/v1", 443)])
def test_workers_alone_reach_the_judge(url: str, port: int) -> None:
    policy = find(render(nested({"judge.url": url, "judge.model": "large"})), "NetworkPolicy", "-to-judge")["spec"]
    assert policy["egress"] == [{"ports": [{"port": port, "protocol": "TCP"}]}]
    (chosen,) = policy["podSelector"]["matchExpressions"]
    assert chosen["values"] == ["worker"]
    assert not [each for each in render() if each["metadata"]["name"].endswith("-to-judge")]


def test_without_a_collector_nobody_is_told_of_one() -> None:
    manifests = render()
    assert not [each for each in manifests if each["metadata"]["name"].endswith("-to-collector")]
    assert not any(name.startswith("OTEL_") for name in configuration(manifests, "worker"))
