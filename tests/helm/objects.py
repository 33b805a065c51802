"""What a release is made of: its pods and what they see, as the policy's rules ask for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.helm import settings_env
from tests.helm.charts import Manifest


@dataclass(frozen=True)
class Workload:
    """An object that makes pods."""

    kind: str
    name: str
    manifest: Manifest
    labels: dict[str, str]
    annotations: dict[str, str]
    pod: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]


def workloads(manifests: Iterable[Manifest]) -> list[Workload]:
    """Everything that makes pods."""
    found = []
    for each in manifests:
        if each["kind"] == "Pod":
            template = each
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = each["spec"]["template"]
        else:
            continue
        metadata = template["metadata"]
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        found.append(Workload(each["kind"], each["metadata"]["name"], each, labels, annotations, template["spec"]))
    return found


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def containers(manifests: Iterable[Manifest]) -> Iterator[tuple[Workload, dict[str, Any]]]:
    for workload in workloads(manifests):
        for container in workload.containers:
            yield workload, container


def hooks(manifest: Manifest) -> set[str]:
    named = manifest["metadata"].get("annotations", {}).get("helm.sh/hook", "")
    return {hook for hook in named.split(",") if hook}


def process_of(container: dict[str, Any]) -> str | None:
    """The word after `alignez` in what the container runs, be it in a shell."""
    words = " ".join(container.get("args", [])).split()
    for word, following in itertools.pairwise(words):
        if word == "alignez" and following in settings_env.PROCESSES:
            return following
    return None


def config_map(name: str, manifests: Iterable[Manifest]) -> Manifest | None:
    return next((each for each in of_kind(manifests, "ConfigMap") if each["metadata"]["name"] == name), None)


#: Values that stand for a secret's, where the process checks their form.
_REFERENCED = {
    "ALIGNEZ_DATABASE_URL": "postgresql://alignez:secret@postgres:5432/alignez",
    "ALIGNEZ_BROKER_URL": "amqp://alignez:secret@rabbitmq:5672/",
}


def environment_of(container: dict[str, Any], manifests: list[Manifest]) -> dict[str, str]:
    """What the process sees; a value that comes by reference is "" or, for the two URLs, an example."""
    environment: dict[str, str] = {}
    for reference in container.get("envFrom", []):
        config = config_map(reference["configMapRef"]["name"], manifests)
        environment |= config["data"] if config else {}
    for variable in container.get("env", []):
        environment[variable["name"]] = variable.get("value", _REFERENCED.get(variable["name"], ""))
    return environment


def port_names(containers: Iterable[dict[str, Any]]) -> set[str | int]:
    declared = [port for container in containers for port in container.get("ports", [])]
    return {port["name"] for port in declared} | {port["containerPort"] for port in declared}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise NotImplementedError(expression["operator"])
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def selected(selector: dict[str, Any], manifests: Iterable[Manifest]) -> list[Workload]:
    return [workload for workload in workloads(manifests) if matches(selector, workload.labels)]
