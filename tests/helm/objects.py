"""What a release is made of: its pods and what they see, as the policy's rules ask for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from profiles.settings import SECRETS_DIR
from tests.helm import settings_env
from tests.helm.charts import Manifest

#: `$(NAME)`, in whose place Kubernetes puts the value of an earlier variable.
REFERENCE = re.compile(r"\$\(([A-Z_][A-Z0-9_]*)\)")


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
    "ALIGNEZ_DATABASE_URL": "postgresql://alignez_app:secret@postgres:5432/alignez",
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


def settings_of(workload: Workload, container: dict[str, Any], manifests: list[Manifest]) -> dict[str, str]:
    """The settings of ours that the process reads, from variables and in their place from mounted files."""
    environment = environment_of(container, manifests)
    directory = environment.pop(SECRETS_DIR, None)
    for mount in container.get("volumeMounts", []):
        if directory is not None and mount["mountPath"] == directory:
            names = [name.upper() for name in files_of(workload, mount["name"])]
            environment |= {name: _REFERENCED.get(name, "") for name in names}
    return {name: value for name, value in environment.items() if name.startswith("ALIGNEZ_")}


Reference = tuple[str, str]


def files_of(workload: Workload, volume: str) -> dict[str, Reference]:
    """Secret and key by file name, of a volume that holds secrets."""
    found: dict[str, Reference] = {}
    for each in workload.pod.get("volumes", []):
        if each["name"] == volume:
            sources = [one["secret"] for one in each.get("projected", {}).get("sources", []) if "secret" in one]
            for source in sources:
                found |= {item["path"]: (source["name"], item["key"]) for item in source.get("items", [])}
    return found


def references_of(container: dict[str, Any]) -> dict[str, Reference]:
    """Secret and key by variable."""
    found: dict[str, Reference] = {}
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference:
            found[variable["name"]] = (reference["name"], reference["key"])
    return found


def secrets_of(workload: Workload, container: dict[str, Any]) -> set[Reference]:
    """All secrets that a container has, by variable or file."""
    files = [files_of(workload, mount["name"]) for mount in container.get("volumeMounts", [])]
    return {*references_of(container).values(), *(reference for each in files for reference in each.values())}


@dataclass(frozen=True)
class DatabaseSecret:
    """Where the secret of a container's database URL is; `user`: its role, None if only the secret names it."""

    reference: Reference
    user: str | None


def database_secret(workload: Workload, container: dict[str, Any]) -> DatabaseSecret | None:
    """The secret in the URL of the database that a container connects to; None without one."""
    name, references = "ALIGNEZ_DATABASE_URL", references_of(container)
    if name in references:
        return DatabaseSecret(references[name], None)
    for mount in container.get("volumeMounts", []):
        if reference := files_of(workload, mount["name"]).get(name.lower()):
            return DatabaseSecret(reference, None)
    url = environment_of(container, []).get(name, "")
    password = REFERENCE.search(url)
    if password is None or password[1] not in references:
        return None
    return DatabaseSecret(references[password[1]], url.partition("://")[2].partition(":")[0])


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
