"""Every values profile, and every combination of the options that change objects, renders to what the policy asks."""

from __future__ import annotations

import itertools
from typing import Any

import helm_python
import pytest

from tests.helm.charts import CHART, PROFILES, Manifest, find, kinds, merged, nested, render, values_of
from tests.helm.policy import violations

pytestmark = pytest.mark.helm

_TOPOLOGIES = list(itertools.product(("external", "embedded"), ("external", "embedded"), ("rabbitmq", "redis")))
_ROUTES: dict[str, dict[str, Any]] = {
    "none": {},
    "ingress": {"ingress.enabled": True},
    "ingress-all": {"ingress.enabled": True, "routing.userPaths": "all"},
    "gateway": {"gateway.enabled": True, "gateway.name": "public", "gateway.namespace": "gateways"},
    "gateway-all": {"gateway.enabled": True, "gateway.name": "public", "routing.userPaths": "all"},
}
_PARALLEL: dict[str, dict[str, Any]] = {
    "1": {},
    "4": {"inference.tensorParallel": 4, "worker.engine": "vllm", "worker.tensorParallel": 2},
    "cpu": {"inference.engine": "transformers", "inference.device": "cpu", "worker.device": "cpu"},
}


def _keda(source: str) -> dict[str, Any]:
    return {
        "worker.autoscaling.enabled": True,
        "worker.autoscaling.source": source,
        "inference.autoscaling.enabled": True,
        "control.autoscaling.enabled": True,
        "keda.prometheusAddress": "http://prometheus.monitoring:9090",
    }


_KEDA: dict[str, dict[str, Any]] = {"no-keda": {}, "jobs": _keda("jobs"), "broker": _keda("broker")}
_MONITORING: dict[str, dict[str, Any]] = {
    "no-monitoring": {},
    "monitoring": {
        "monitoring.serviceMonitor": True,
        "monitoring.prometheusRule": True,
        "monitoring.dashboard": True,
        "tests.enabled": True,
        "tests.existingSecret": "key",
    },
}


@pytest.mark.parametrize("profile", PROFILES)
def test_lints_without_a_warning(profile: str) -> None:
    report = helm_python.lint(CHART, values_of(profile), strict=True, kube_version="v1.32.0")
    loud = [message for message in report["messages"] if message["severity"] >= 2]
    assert report["total_charts_linted"] == 1
    assert (loud, report["errors"]) == ([], [])


@pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_holds_the_policy(profile: str, upgrade: bool) -> None:
    assert violations(render(values_of(profile), upgrade=upgrade)) == []


@pytest.mark.parametrize("parallel", _PARALLEL)
@pytest.mark.parametrize("route", _ROUTES)
@pytest.mark.parametrize(("database", "broker", "kind"), _TOPOLOGIES)
def test_options_combine(database: str, broker: str, kind: str, route: str, parallel: str) -> None:
    """Each with every way to scale and to be watched: 8 topologies, 5 routes, 3 sizes, 3 autoscalers, 2 monitors."""
    topology = {"database.mode": database, "broker.mode": broker, "broker.kind": kind}
    for scaled, watched in itertools.product(_KEDA.values(), _MONITORING.values()):
        values = nested({**topology, **_ROUTES[route], **_PARALLEL[parallel], **scaled, **watched})
        manifests = render(values)
        assert violations(manifests) == []
        _assert_there(manifests, route=route, scaled=bool(scaled), watched=bool(watched))
        embedded = {"postgres"} if database == "embedded" else set()
        embedded |= {kind} if broker == "embedded" else set()
        assert {name.rpartition("-")[2] for name in _names(manifests, "StatefulSet")} == embedded


def _names(manifests: list[Manifest], kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in manifests if each["kind"] == kind}


def _assert_there(manifests: list[Manifest], *, route: str, scaled: bool, watched: bool) -> None:
    optional = {"Ingress", "HTTPRoute", "ScaledObject", "HorizontalPodAutoscaler", "ServiceMonitor", "PrometheusRule"}
    expected = {"Ingress"} if route.startswith("ingress") else {"HTTPRoute"} if route.startswith("gateway") else set()
    expected |= {"ScaledObject", "HorizontalPodAutoscaler"} if scaled else set()
    expected |= {"ServiceMonitor", "PrometheusRule"} if watched else set()
    assert kinds(manifests) & optional == expected
    assert _names(manifests, "Deployment") == {
        f"rel-alignez-{name}" for name in ("control", "inference", "worker", "relay")
    }


@pytest.mark.parametrize("release", ["a", "alignez", "alignez-eu", "r" * 53, f"{'long-release-name-' * 3}"[:52] + "x"])
def test_names_fit_whatever_the_release_is_called(release: str) -> None:
    assert violations(render(values_of("values.lint.yaml"), release=release)) == []
    redis = merged(values_of("values.lint.yaml"), nested({"broker.kind": "redis"}))
    assert violations(render(redis, release=release, upgrade=True)) == []


def test_two_long_releases_of_one_namespace_do_not_collide() -> None:
    one, other = (_names(render(release=f"{'r' * 52}{last}"), "Deployment") for last in "ab")
    assert not one & other


def test_production_is_highly_available() -> None:
    manifests = render(values_of("values.production.yaml"))
    for name in ("control", "inference", "relay"):
        deployment = find(manifests, "Deployment", f"-{name}")
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        scalers = [
            each["spec"].get("minReplicas", each["spec"].get("minReplicaCount"))
            for each in manifests
            if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
            and each["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        ]
        assert (scalers or [deployment["spec"].get("replicas")])[0] >= 2
        assert find(manifests, "PodDisruptionBudget", f"-{name}")["spec"]["maxUnavailable"] == 1
        spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert [one["topologyKey"] for one in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert "StatefulSet" not in kinds(manifests)
    assert find(manifests, "ScaledObject", "-worker")["spec"]["minReplicaCount"] == 0


def test_small_asks_for_one_gpu_and_one_volume_per_server() -> None:
    manifests = render(values_of("values.small.yaml"))
    limits = [
        container["resources"]["limits"]
        for each in manifests
        if each["kind"] in ("Deployment", "StatefulSet")
        for container in each["spec"]["template"]["spec"]["containers"]
    ]
    assert sum(limit.get("nvidia.com/gpu", 0) for limit in limits) == 1
    assert _names(manifests, "StatefulSet") == {"rel-alignez-postgres", "rel-alignez-redis"}
    # With one GPU, a surge pod would wait for its predecessor's for ever.
    assert find(manifests, "Deployment", "-inference")["spec"]["strategy"] == {"type": "Recreate"}
    assert all("replicas" not in each["spec"] or each["spec"]["replicas"] == 1 for each in manifests if "spec" in each)
