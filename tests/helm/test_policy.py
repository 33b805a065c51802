"""The policy finds what it is there to find: mistakes planted in a copy of the chart, and in what it renders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helm.charts import CHART, Manifest, find, render, values_of
from tests.helm.policy import violations

pytestmark = pytest.mark.helm

# (what is wrong, file, text in it, what stands there instead, the complaint)
_IN_THE_CHART: list[tuple[str, str, str, str, str]] = [
    (
        "root user",
        "templates/_helpers.tpl",
        "runAsNonRoot: true\nrunAsUser: {{ . }}",
        "runAsNonRoot: false\nrunAsUser: 0",
        "Deployment/rel-alignez-control: runs as root",
    ),
    (
        "missing limit",
        "values.yaml",
        "limits: {memory: 32Gi}",
        "limits: {ephemeral-storage: 1Gi}",
        "Deployment/rel-alignez-inference api: no limit for memory",
    ),
    (
        "latest tag",
        "templates/_helpers.tpl",
        '{{ printf "%s:%s" .repository .tag }}',
        '{{ printf "%s:latest" .repository }}',
        "Deployment/rel-alignez-relay relay: image registry.example.com/team/alignez-control:latest is not pinned",
    ),
    (
        "selector mismatch",
        "templates/_api.tpl",
        '    {{- include "alignez.selectorLabels" . | nindent 4 }}\n  ports:',
        "    app: alignez\n  ports:",
        "Service/rel-alignez-control: its selector matches [], not one workload",
    ),
    (
        "port mismatch",
        "templates/_api.tpl",
        "targetPort: http,",
        "targetPort: 8080,",
        "Service/rel-alignez-inference: Deployment/rel-alignez-inference has no port 8080",
    ),
    (
        "inlined secret",
        "templates/_secrets.tpl",
        ":$(DATABASE_PASSWORD)@",
        ":hunter2@",
        "Deployment/rel-alignez-worker worker: ALIGNEZ_DATABASE_URL has a secret in its value",
    ),
    (
        "missing probe",
        "templates/relay/deployment.yaml",
        "readinessProbe:",
        "startupProbe:",
        "Deployment/rel-alignez-relay relay: no readinessProbe",
    ),
    (
        "user of the node",
        "values.yaml",
        "runAsUser: 10999",
        "runAsUser: 999",
        "StatefulSet/rel-alignez-postgres: runs as 999, which may be a user of the node too (below 10000)",
    ),
    (
        "a worker's liveness by another path",
        "templates/worker/deployment.yaml",
        "path: /alive",
        "path: /metrics",
        "Deployment/rel-alignez-worker worker: its livenessProbe does not ask /alive",
    ),
    (
        "a relay without liveness",
        "templates/relay/deployment.yaml",
        "livenessProbe:",
        "startupProbe:",
        "Deployment/rel-alignez-relay relay: no livenessProbe",
    ),
    (
        "unknown field",
        "templates/worker/deployment.yaml",
        "  revisionHistoryLimit: 5",
        "  revisionHistoryLimits: 5",
        "'revisionHistoryLimits' was unexpected",
    ),
    (
        "wrong variable",
        "templates/_config.tpl",
        "ALIGNEZ_WORKER_MAX_BATCH:",
        "ALIGNEZ_WORKER_MAX_BATCHES:",
        "Deployment/rel-alignez-worker worker: `alignez worker` reads no ALIGNEZ_WORKER_MAX_BATCHES",
    ),
    (
        "grace shorter than drain",
        "templates/_api.tpl",
        '{{ include "alignez.apiGrace" $values }}',
        "30",
        "Deployment/rel-alignez-control: grace period 30 s is shorter than delay 10 s + drain 30 s + 5 s",
    ),
]


@pytest.mark.parametrize(
    ("file", "text", "instead", "complaint"),
    [each[1:] for each in _IN_THE_CHART],
    ids=[each[0] for each in _IN_THE_CHART],
)
def test_a_mistake_in_the_chart_is_found(file: str, text: str, instead: str, complaint: str, tmp_path: Path) -> None:
    chart = tmp_path / "alignez"
    shutil.copytree(CHART, chart)
    source = (chart / file).read_text(encoding="utf-8")
    assert text in source, "the mistake has no place any more"
    (chart / file).write_text(source.replace(text, instead), encoding="utf-8")
    found = violations(render(values_of("values.lint.yaml"), chart=chart))
    assert any(complaint in one for one in found), found


def _pod(manifests: list[Manifest], component: str = "control", kind: str = "Deployment") -> dict[str, Any]:
    pod: dict[str, Any] = find(manifests, kind, f"-{component}")["spec"]["template"]["spec"]
    return pod


def _container(manifests: list[Manifest], component: str = "control", kind: str = "Deployment") -> dict[str, Any]:
    container: dict[str, Any] = _pod(manifests, component, kind)["containers"][0]
    return container


def _append(of: list[Manifest], kind: str, name: str, data: dict[str, Any]) -> None:
    metadata = {**find(of, "ConfigMap", "-control")["metadata"], "name": name}
    of.append({"apiVersion": "v1", "kind": kind, "metadata": metadata, **data})


def _set_label(manifests: list[Manifest]) -> None:
    find(manifests, "Deployment", "-control")["spec"]["template"]["metadata"]["labels"]["helm.sh/chart"] = "alignez-1"


def _environment(manifests: list[Manifest], name: str, value: str) -> None:
    _container(manifests)["env"].append({"name": name, "value": value})


_Mistake = Callable[[list[Manifest]], Any]
_IN_THE_RENDER: dict[str, tuple[_Mistake, str]] = {
    "wrong type": (lambda m: find(m, "Service", "-control")["spec"].update(ports="80"), "Service/rel-alignez-control"),
    "unknown field of a CRD": (
        lambda m: find(m, "ScaledObject", "-worker")["spec"].update(minReplicas=0),
        "'minReplicas' was unexpected",
    ),
    "a number where KEDA wants a string": (
        lambda m: find(m, "ScaledObject", "-worker")["spec"]["triggers"][0]["metadata"].update(targetQueryValue=1),
        "ScaledObject/rel-alignez-worker: $.spec.triggers[0]",
    ),
    "a kind without schema": (lambda m: _append(m, "Gadget", "x", {}), "Couldn't find schema for kind Gadget"),
    "a long name": (
        lambda m: find(m, "StatefulSet", "-postgres")["metadata"].update(name="p" * 53),
        "not a name of at most 52 characters",
    ),
    "one name twice": (lambda m: m.append(m[0]), "is there 2 times"),
    "another namespace": (lambda m: m[0]["metadata"].update(namespace="other"), "several namespaces"),
    "a missing label": (
        lambda m: m[0]["metadata"]["labels"].pop("app.kubernetes.io/part-of"),
        "no label app.kubernetes.io/part-of",
    ),
    "a version among the pods' labels": (_set_label, "pods with a version label"),
    "no seccomp": (lambda m: _pod(m)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    "a token": (lambda m: _pod(m).update(automountServiceAccountToken=True), "mounts a service account's token"),
    "service links": (lambda m: _pod(m).pop("enableServiceLinks"), "service links"),
    "the host's network": (lambda m: _pod(m).update(hostNetwork=True), "hostNetwork"),
    "a writable root": (
        lambda m: _container(m)["securityContext"].update(readOnlyRootFilesystem=False),
        "root file system is writable",
    ),
    "privileges": (
        lambda m: _container(m)["securityContext"].update(allowPrivilegeEscalation=True),
        "may gain privileges",
    ),
    "capabilities": (
        lambda m: _container(m)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        "keeps capabilities",
    ),
    "root of a container": (lambda m: _container(m)["securityContext"].update(runAsUser=0), "api: runs as root"),
    "no service account": (lambda m: _pod(m).update(serviceAccountName="x"), "service account is not part"),
    "a Secret": (lambda m: _append(m, "Secret", "s", {"data": {}}), "a secret's content is in the release"),
    "a secret in a ConfigMap": (
        lambda m: find(m, "ConfigMap", "-control")["data"].update(X="redis://:abc@host/0"),
        "X is a secret in a ConfigMap",
    ),
    "a password by value": (lambda m: _environment(m, "DB_PASSWORD", "abc"), "DB_PASSWORD is a secret by value"),
    "a password of an unknown variable": (
        lambda m: _environment(m, "URL", "amqp://u:$(NOBODY)@host"),
        "URL has a secret in its value",
    ),
    "a secret argument": (
        lambda m: _container(m).update(args=["alignez", "api", "amqp://u:p@h"]),
        "an argument has a secret in it",
    ),
    "no request": (lambda m: _container(m)["resources"]["requests"].pop("cpu"), "no request for cpu"),
    "another number of GPUs": (
        lambda m: _container(m, "inference")["resources"]["limits"].update({"nvidia.com/gpu": 2}),
        "2 GPUs, but the engine uses 4",
    ),
    "an image without tag": (lambda m: _container(m).update(image="host:5000/alignez"), "is not pinned"),
    "no liveness": (lambda m: _container(m).pop("livenessProbe"), "no livenessProbe"),
    "no delay": (
        lambda m: find(m, "ConfigMap", "-control")["data"].pop("ALIGNEZ_API_DRAIN_DELAY_S"),
        "no delay before its drain",
    ),
    "a worker's grace": (
        lambda m: _pod(m, "worker").update(terminationGracePeriodSeconds=60),
        "shorter than its hand-back",
    ),
    "a value that the setting refuses": (
        lambda m: find(m, "ConfigMap", "-inference")["data"].update(ALIGNEZ_API_ENGINE="llama.cpp"),
        "Input should be 'transformers' or 'vllm'",
    ),
    "a missing ConfigMap": (
        lambda m: m.remove(find(m, "ConfigMap", "-worker")),
        "ConfigMap rel-alignez-worker is not there",
    ),
    "no checksum": (
        lambda m: find(m, "Deployment", "-relay")["spec"]["template"]["metadata"]["annotations"].pop("checksum/config"),
        "new settings would not restart it",
    ),
    "a mount without volume": (lambda m: _pod(m).update(volumes=[]), "volumes [], mounts ['tmp']"),
    "nowhere to write": (lambda m: _container(m)["volumeMounts"][0].update(mountPath="/var"), "may write to at /tmp"),
    "a missing claim": (
        lambda m: find(m, "PersistentVolumeClaim", "-cache")["metadata"].update(name="other"),
        "claim rel-alignez-model-cache is not there",
    ),
    "a probe's port": (
        lambda m: _container(m)["readinessProbe"]["httpGet"].update(port="web"),
        "readinessProbe asks port web",
    ),
    "a policy's port": (
        lambda m: find(m, "NetworkPolicy", "-to-apis")["spec"]["ingress"][0]["ports"][0].update(port="web"),
        "has no port web",
    ),
    "a policy for nobody": (
        lambda m: find(m, "NetworkPolicy", "-to-hub")["spec"]["podSelector"].update(matchLabels={"a": "b"}),
        "matches no pod",
    ),
    "a policy's unknown peer": (
        lambda m: find(m, "NetworkPolicy", "-postgres")["spec"]["ingress"][0]["from"][0].update(
            podSelector={"matchLabels": {"a": "b"}}
        ),
        "matches no pod",
    ),
    "a budget for nobody": (
        lambda m: find(m, "PodDisruptionBudget", "-relay")["spec"]["selector"].update(matchLabels={"a": "b"}),
        "matches [], not one workload",
    ),
    "a budget for too many": (
        lambda m: find(m, "PodDisruptionBudget", "-relay")["spec"]["selector"]["matchLabels"].pop(
            "app.kubernetes.io/component"
        ),
        "not one workload",
    ),
    "a deployment's own selector": (
        lambda m: find(m, "Deployment", "-relay")["spec"]["selector"]["matchLabels"].update(a="b"),
        "does not match its own pods",
    ),
    "a monitor for nobody": (
        lambda m: find(m, "ServiceMonitor", "-metrics")["spec"]["selector"].update(matchLabels={"a": "b"}),
        "matches no service",
    ),
    "a monitor's port": (
        lambda m: find(m, "ServiceMonitor", "-metrics")["spec"]["endpoints"][0].update(port="web"),
        "has no port web",
    ),
    "a backend that is not there": (
        lambda m: find(m, "Ingress", "-api")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"].update(
            name="x"
        ),
        "no service x with port http",
    ),
    "two autoscalers": (
        lambda m: find(m, "ScaledObject", "-worker")["spec"]["scaleTargetRef"].update(name="rel-alignez-control"),
        "has 2 autoscalers",
    ),
    "an autoscaler of nothing": (
        lambda m: find(m, "HorizontalPodAutoscaler", "-control")["spec"]["scaleTargetRef"].update(name="x"),
        "no deployment x",
    ),
    "replicas beside an autoscaler": (
        lambda m: find(m, "Deployment", "-control")["spec"].update(replicas=2),
        "sets replicas too",
    ),
    "a trigger without authentication": (
        lambda m: m.remove(find(m, "TriggerAuthentication", "-worker")),
        "no TriggerAuthentication",
    ),
}


@pytest.mark.parametrize("mistake", _IN_THE_RENDER)
def test_a_mistake_in_the_render_is_found(mistake: str) -> None:
    plant, complaint = _IN_THE_RENDER[mistake]
    manifests = render(values_of("values.lint.yaml"))
    assert violations(manifests) == []
    plant(manifests)
    found = violations(manifests)
    assert any(complaint in one for one in found), found


@pytest.mark.parametrize("missing", ["ServiceAccount", "ConfigMap"])
def test_a_hook_that_runs_before_what_it_needs_is_found(missing: str) -> None:
    manifests = render()
    assert violations(manifests) == []
    if missing == "ServiceAccount":
        _pod(manifests, "migrate", "Job")["serviceAccountName"] = "rel-alignez"
        complaint = "runs before its service account exists"
    else:
        reference = {"configMapRef": {"name": "rel-alignez-control"}}
        _container(manifests, "migrate", "Job")["envFrom"] = [reference]
        complaint = "runs before its ConfigMap exists"
    assert any(complaint in one for one in violations(manifests))


def test_a_key_that_stands_twice_is_found(tmp_path: Path) -> None:
    chart = tmp_path / "alignez"
    shutil.copytree(CHART, chart)
    file = chart / "templates" / "serviceaccount.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "automountServiceAccountToken: true\n", encoding="utf-8")
    with pytest.raises(Exception, match="keys stand twice"):
        render(chart=chart)
