"""Values that cannot work are refused, in words that say what to do."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from tests.helm.charts import nested, render

pytestmark = pytest.mark.helm

_RULES: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "two routes",
        {"ingress.enabled": True, "gateway.enabled": True, "gateway.name": "g"},
        ["both", "set one of them to false"],
    ),
    ("gateway without a name", {"gateway.enabled": True}, ["set gateway.name"]),
    ("external database without secret", {"database.existingSecret": ""}, ["DATABASE_URL", "kubectl create secret"]),
    (
        "embedded database without secret",
        {"database.existingSecret": "", "database.mode": "embedded"},
        ["DATABASE_PASSWORD", "database.existingSecret"],
    ),
    (
        "external database without its owner's secret",
        {"database.owner.existingSecret": ""},
        ["owner", "kubectl create secret generic alignez-owner", "DATABASE_URL", "database.owner.existingSecret"],
    ),
    (
        "embedded database without its owner's secret",
        {"database.owner.existingSecret": "", "database.mode": "embedded"},
        ["owner", "POSTGRES_PASSWORD", "database.owner.existingSecret"],
    ),
    (
        "one secret for both roles",
        {"database.owner.existingSecret": "alignez"},
        ["same key DATABASE_URL of the secret alignez", "alignez_app", "database.owner.existingSecret"],
    ),
    (
        "one password for both roles",
        {
            "database.mode": "embedded",
            "database.owner": {"existingSecret": "alignez", "passwordKey": "DATABASE_PASSWORD"},
        },
        ["same key DATABASE_PASSWORD of the secret alignez"],
    ),
    (
        "files of an embedded database's secrets",
        {"secrets.asFiles": True, "database.mode": "embedded"},
        ["secrets.asFiles", "database.mode and broker.mode external", "set secrets.asFiles to false"],
    ),
    (
        "files of an embedded broker's secrets",
        {"secrets.asFiles": True, "broker.mode": "embedded", "broker.kind": "redis"},
        ["secrets.asFiles", "composed of a password"],
    ),
    ("broker without secret", {"broker.existingSecret": ""}, ["BROKER_URL", "broker.existingSecret"]),
    ("no worker ever", {"worker.replicas": 0}, ["worker.autoscaling.enabled", "KEDA"]),
    ("scaling by no metric", {"inference.autoscaling.enabled": True}, ["keda.prometheusAddress"]),
    (
        "fewest above most",
        {"control.autoscaling.enabled": True, "control.autoscaling.minReplicas": 9},
        ["minReplicas (9)", "maxReplicas (6)"],
    ),
    (
        "parallel transformers",
        {"inference.engine": "transformers", "inference.tensorParallel": 2},
        ["inference.engine to vllm"],
    ),
    (
        "GPUs other than tensorParallel",
        {"inference.tensorParallel": 4, "inference.resources.limits": {"nvidia.com/gpu": 2}},
        ["2 nvidia.com/gpu", "uses 4", "inference.tensorParallel"],
    ),
    (
        "GPUs for a CPU",
        {"worker.device": "cpu", "worker.resources.requests": {"nvidia.com/gpu": 1}},
        ["uses 0", "worker.tensorParallel"],
    ),
    (
        "grace below drain",
        {"inference.terminationGracePeriodSeconds": 60},
        ["inference.terminationGracePeriodSeconds (60)", "135 s", "set it to 0"],
    ),
    (
        "grace below drain of control",
        {"control.terminationGracePeriodSeconds": 44},
        ["control.terminationGracePeriodSeconds (44)", "45 s"],
    ),
    (
        "grace below hand-back",
        {"worker.terminationGracePeriodSeconds": 60},
        ["worker.handBackSeconds (120)", "hand their jobs back"],
    ),
    (
        "one volume, many nodes",
        {"model.cache.type": "pvc", "model.cache.accessModes": ["ReadWriteOnce"], "inference.replicas": 2},
        ["ReadWriteMany", "emptyDir"],
    ),
    ("a judge without a model", {"judge.url": "https://judge.example/v1"}, ["judge.url", "judge.model"]),
    ("offline without a model", {"model.offline": True, "model.name": "org/model"}, ["existingClaim"]),
    ("test without a key", {"tests.enabled": True}, ["tests.existingSecret"]),
    (
        "a setting that the chart makes",
        {"control.settings": {"ALIGNEZ_API_DRAIN_S": "1"}},
        ["control.settings.ALIGNEZ_API_DRAIN_S", "value of its own"],
    ),
]


@pytest.mark.parametrize(("settings", "said"), [rule[1:] for rule in _RULES], ids=[rule[0] for rule in _RULES])
def test_a_combination_that_cannot_work_is_refused(settings: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(helm_python.HelmRenderError) as refusal:
        render(nested(settings))
    for words in said:
        assert words in str(refusal.value)


_MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"controll.replicas": 2}, "controll"),
    ({"control.replica": 2}, "replica"),
    ({"control.replicas": "two"}, "/control/replicas"),
    ({"control.replicas": 0}, "/control/replicas"),
    ({"broker.kind": "kafka"}, "'rabbitmq', 'redis'"),
    ({"database.mode": "internal"}, "'external', 'embedded'"),
    ({"inference.tensorParallel": 0}, "/inference/tensorParallel"),
    ({"inference.autoscaling.minReplicas": 0}, "/inference/autoscaling/minReplicas"),
    ({"images.control.tag": "latest"}, "/images/control/tag"),
    ({"images.worker.digest": "sha256:short"}, "/images/worker/digest"),
    ({"database.embedded.image.tag": "latest"}, "/database/embedded/image/tag"),
    ({"database.embedded.image": "pgvector/pgvector:0.8.1-pg16"}, "/database/embedded/image"),
    ({"broker.embedded.redisImage.tag": ""}, "/broker/embedded/redisImage/tag"),
    ({"broker.embedded.rabbitmqImage.digest": "sha256:short"}, "/broker/embedded/rabbitmqImage/digest"),
    ({"database.embedded.runAsUser": 0}, "/database/embedded/runAsUser"),
    ({"database.owner.urlKey": ""}, "/database/owner/urlKey"),
    ({"secrets.asFiles": "yes"}, "/secrets/asFiles"),
    ({"control.resources": {"limits": None}}, "limits"),
    ({"control.settings": {"PATH": "/bin"}}, "PATH"),
    ({"worker.settings": {"ALIGNEZ_WORKER_STORE_ROWS": 5}}, "/worker/settings"),
    ({"database.external.cidrs": ["10.0.0.1"]}, "/database/external/cidrs"),
    ({"model.mlpPath": "model.layers.mlp"}, "/model/mlpPath"),
    ({"worker.device": "tpu"}, "/worker/device"),
    ({"database.urlKey": ""}, "/database/urlKey"),
]


@pytest.mark.parametrize(("settings", "said"), _MALFORMED, ids=[next(iter(each[0])) for each in _MALFORMED])
def test_a_value_of_the_wrong_form_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmValuesError) as refusal:
        render(nested(settings))
    assert said in str(refusal.value)


def test_the_shortest_grace_period_is_taken() -> None:
    assert render(nested({"control.terminationGracePeriodSeconds": 45, "worker.terminationGracePeriodSeconds": 120}))
