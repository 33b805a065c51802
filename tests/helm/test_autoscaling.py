"""Who scales what, by which measure."""

from __future__ import annotations

from typing import Any

import pytest

from profiles.delivery.celery_queue import FIT_QUEUE
from profiles.models import JobStatus
from tests.helm.charts import (
    KEDA,
    find,
    nested,
    render,
    variables,
)

pytestmark = pytest.mark.helm


def test_an_autoscaler_owns_the_replicas() -> None:
    settings = {"control.autoscaling.enabled": True, "control.autoscaling.maxReplicas": 9}
    hpa = find(render(nested(settings)), "HorizontalPodAutoscaler", "-control")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (2, 9)
    assert hpa["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    assert find(render(nested({"control.replicas": 4})), "Deployment", "-control")["spec"]["replicas"] == 4


def _trigger(settings: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    manifests = render(nested({**KEDA, **settings}))
    trigger = find(manifests, "ScaledObject", "-worker")["spec"]["triggers"][0]
    found = [each for each in manifests if each["kind"] == "TriggerAuthentication"]
    return trigger, found[0]["spec"]["secretTargetRef"] if found else []


def test_workers_are_scaled_by_jobs_running_ones_too() -> None:
    trigger, secrets = _trigger({"worker.autoscaling.jobsPerWorker": 2})
    assert trigger["type"] == "postgresql"
    for status in (JobStatus.QUEUED, JobStatus.RUNNING):
        assert f"'{status}'" in trigger["metadata"]["query"]
    assert trigger["metadata"]["targetQueryValue"] == "2"
    assert secrets == [{"parameter": "connection", "name": "alignez", "key": "KEDA_DATABASE_URL"}]
    embedded, secrets = _trigger({"database.mode": "embedded"})
    assert embedded["metadata"]["host"] == "rel-alignez-postgres.ns.svc"
    assert embedded["metadata"]["userName"] == "alignez_app"
    assert secrets == [{"parameter": "password", "name": "alignez", "key": "DATABASE_PASSWORD"}]


@pytest.mark.parametrize("mode", ["external", "embedded"])
@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
def test_workers_are_scaled_by_the_broker(kind: str, mode: str) -> None:
    settings = {"worker.autoscaling.source": "broker", "broker.kind": kind, "broker.mode": mode}
    trigger, secrets = _trigger(settings)
    assert trigger["type"] == kind
    assert trigger["metadata"]["queueName" if kind == "rabbitmq" else "listName"] == FIT_QUEUE
    parameters = {secret["parameter"]: secret["key"] for secret in secrets}
    if mode == "external":
        assert parameters == (
            {"host": "KEDA_RABBITMQ_URL"}
            if kind == "rabbitmq"
            else {"address": "KEDA_REDIS_ADDRESS", "password": "KEDA_REDIS_PASSWORD"}
        )
    elif kind == "rabbitmq":
        # From the worker's environment; the management API counts running fits, AMQP does not.
        assert trigger["metadata"]["protocol"] == "http"
        names = set(variables(render(nested({**KEDA, **settings})), "worker"))
        assert {trigger["metadata"]["usernameFromEnv"], trigger["metadata"]["passwordFromEnv"]} <= names
        assert not parameters
    else:
        assert trigger["metadata"]["address"] == "rel-alignez-redis.ns.svc:6379"
        assert parameters == {"password": "BROKER_PASSWORD"}


def test_a_redis_without_password_needs_no_key() -> None:
    settings = {
        "worker.autoscaling.source": "broker",
        "broker.kind": "redis",
        "worker.autoscaling.redisPasswordKey": "",
    }
    assert [secret["parameter"] for secret in _trigger(settings)[1]] == ["address"]


def test_workers_go_when_there_is_nothing_to_fit() -> None:
    scaled = find(render(nested({**KEDA, "worker.autoscaling.cooldownSeconds": 9999})), "ScaledObject", "-worker")[
        "spec"
    ]
    assert scaled["minReplicaCount"] == 0
    assert scaled["cooldownPeriod"] == 9999
    # A HorizontalPodAutoscaler takes an hour at most.
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 3600


def test_inference_is_scaled_by_its_own_rows() -> None:
    scaled = find(render(nested(KEDA)), "ScaledObject", "-inference")["spec"]
    assert scaled["minReplicaCount"] >= 1, "the metric comes from the pods"
    metadata = [trigger["metadata"] for trigger in scaled["triggers"]]
    assert [one["threshold"] for one in metadata] == ["16", "48"]
    for one, metric in zip(metadata, ("waiting", "running"), strict=True):
        assert one["query"] == f'sum(alignez:num_requests_{metric}{{namespace="ns",service="rel-alignez-inference"}})'
        assert one["serverAddress"] == "http://prometheus.monitoring:9090"
    # The metric's label `service` is the name of this object.
    assert find(render(nested(KEDA)), "Service", "-inference")["metadata"]["name"] == "rel-alignez-inference"
