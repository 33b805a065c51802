"""What every rendered release has to hold, as plain functions: objects in, complaints out.

`violations` is all of it. It is tested both ways: releases of the chart have none, and planted mistakes are found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from telemetry.metrics_server import ALIVE_PATH
from tests.helm import policy_security, settings_env
from tests.helm.charts import Manifest
from tests.helm.objects import (
    config_map,
    containers,
    environment_of,
    hooks,
    matches,
    name_of,
    of_kind,
    port_names,
    process_of,
    selected,
    settings_of,
    workloads,
)
from tests.helm.schema_check import schemas

#: After the drain, for the last bytes of answers (api/server.py, `_LAST_BYTES_S`).
LAST_BYTES_S = 5

_DNS_LABEL = re.compile(r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
_NO_PROBES = "alignez/no-probes"
_SHORTEST_REASON = 20
#: What tells a stuck worker from one that fits for hours (worker/liveness.py).
_ALIVE = {"path": ALIVE_PATH, "port": "metrics"}
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def violations(manifests: list[Manifest]) -> list[str]:
    """Every complaint about a release, each naming its object.

    Of objects that are malformed it says just that, for the other rules read what has the right form.
    """
    malformed = list(schemas(manifests))
    return malformed or [complaint for rule in RULES for complaint in rule(manifests)]


# What the API server would say of names


def names(manifests: list[Manifest]) -> Iterator[str]:
    """DNS labels of at most 63 characters, also with what a controller appends; none twice; one namespace."""
    for each in manifests:
        name = each["metadata"]["name"]
        # A StatefulSet's pods bear a label with its name and a revision of 10 characters and a dash.
        longest = 52 if each["kind"] == "StatefulSet" else 63
        if len(name) > longest or not _DNS_LABEL.match(name):
            yield f"{name_of(each)}: not a name of at most {longest} characters"
        for key, value in each["metadata"].get("labels", {}).items():
            if len(value) > 63:
                yield f"{name_of(each)}: label {key} is longer than 63 characters"
    counts = Counter((each["kind"], each["metadata"]["name"]) for each in manifests)
    yield from (f"{kind}/{name} is there {n} times" for (kind, name), n in counts.items() if n > 1)
    if len({each["metadata"].get("namespace") for each in manifests}) > 1:
        yield "objects of one release are in several namespaces"


def common_labels(manifests: list[Manifest]) -> Iterator[str]:
    """The same recommended labels on all objects; no version among those of pods, which would restart them."""
    for each in manifests:
        labels = each["metadata"].get("labels", {})
        for label in ("name", "instance", "component", "part-of", "managed-by", "version"):
            if f"app.kubernetes.io/{label}" not in labels:
                yield f"{name_of(each)}: no label app.kubernetes.io/{label}"
    instances = {each["metadata"].get("labels", {}).get("app.kubernetes.io/instance") for each in manifests}
    if len(instances) > 1:
        yield f"objects of one release belong to several instances: {instances}"
    for workload in workloads(manifests):
        if workload.kind != "Pod" and {"helm.sh/chart", "app.kubernetes.io/version"} & workload.labels.keys():
            yield f"{workload}: pods with a version label are made anew by every chart"


# Operation


def resources(manifests: list[Manifest]) -> Iterator[str]:
    """Requests for CPU and memory, a limit for memory, and as many GPUs as the engine uses."""
    for workload, container in containers(manifests):
        got = container.get("resources", {})
        requests, limits = got.get("requests", {}), got.get("limits", {})
        for name in ("cpu", "memory"):
            if name not in requests:
                yield f"{workload} {container['name']}: no request for {name}"
        if "memory" not in limits:
            yield f"{workload} {container['name']}: no limit for memory"
        environment = environment_of(container, manifests)
        gpus = sum(int(count) for name, count in limits.items() if "/" in name)
        if process_of(container) not in ("api", "worker"):
            continue  # the relay reads the worker's settings, but holds no model
        for prefix in ("ALIGNEZ_API", "ALIGNEZ_WORKER"):
            parallel = environment.get(f"{prefix}_VLLM_TENSOR_PARALLEL")
            device = environment.get(f"{prefix}_DEVICE", "")
            expected = int(parallel) if parallel else int(device.startswith("cuda")) if device else None
            if expected is not None and expected != gpus:
                yield f"{workload} {container['name']}: {gpus} GPUs, but the engine uses {expected}"


def images(manifests: list[Manifest]) -> Iterator[str]:
    """A tag that says what it is, or a digest."""
    for workload, container in containers(manifests):
        image = container["image"]
        tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            yield f"{workload} {container['name']}: image {image} is not pinned"


def probes(manifests: list[Manifest]) -> Iterator[str]:
    """Readiness and liveness of what runs on; an exemption gives its reason in an annotation of the pod."""
    for workload in workloads(manifests):
        annotations = {**workload.manifest["metadata"].get("annotations", {}), **workload.annotations}
        if workload.kind == "Job" or len(annotations.get(_NO_PROBES, "")) >= _SHORTEST_REASON:
            continue
        for container in workload.pod["containers"]:
            if "readinessProbe" not in container:
                yield f"{workload} {container['name']}: no readinessProbe"
            liveness = container.get("livenessProbe")
            if liveness is None:
                yield f"{workload} {container['name']}: no livenessProbe"
            elif process_of(container) in ("worker", "relay") and liveness.get("httpGet") != _ALIVE:
                yield f"{workload} {container['name']}: its livenessProbe does not ask {_ALIVE['path']}"


def grace_periods(manifests: list[Manifest]) -> Iterator[str]:
    """Longer than a shutdown can take: delay, drain and last bytes of an API; a worker's hand-back."""
    for workload in workloads(manifests):
        grace = workload.pod.get("terminationGracePeriodSeconds", 30)
        for container in workload.pod["containers"]:
            environment = environment_of(container, manifests)
            drain = environment.get("ALIGNEZ_API_DRAIN_S")
            delay = float(environment.get("ALIGNEZ_API_DRAIN_DELAY_S", 0))
            if drain is not None and grace < delay + float(drain) + LAST_BYTES_S:
                yield f"{workload}: grace period {grace} s is shorter than delay {delay:g} s + drain {drain} s + 5 s"
            if drain is not None and delay == 0:
                yield f"{workload}: no delay before its drain; requests would arrive after its end"
        hand_back = workload.annotations.get("alignez/hand-back-seconds")
        if hand_back is not None and grace < int(hand_back):
            yield f"{workload}: grace period {grace} s is shorter than its hand-back of {hand_back} s"


def environment_names(manifests: list[Manifest]) -> Iterator[str]:
    """Every ALIGNEZ_ variable is one that its process reads, and has a value that it takes."""
    for workload, container in containers(manifests):
        ours = settings_of(workload, container, manifests)
        process = process_of(container)
        if process is None:
            # A script of the chart; it reads the database's URL at most.
            if ours.keys() - {"ALIGNEZ_DATABASE_URL"}:
                yield f"{workload} {container['name']}: {sorted(ours)} and no process of ours to read them"
            continue
        for name in sorted(settings_env.unknown(process, set(ours))):
            yield f"{workload} {container['name']}: `alignez {process}` reads no {name}"
        for complaint in settings_env.invalid(process, ours):
            yield f"{workload} {container['name']}: {complaint}"
        for reference in container.get("envFrom", []):
            if config_map(reference["configMapRef"]["name"], manifests) is None:
                yield f"{workload} {container['name']}: ConfigMap {reference['configMapRef']['name']} is not there"
        if container.get("envFrom") and "checksum/config" not in workload.annotations:
            yield f"{workload}: new settings would not restart it (annotation checksum/config)"
        if container.get("envFrom") and "pre-install" in hooks(workload.manifest):
            yield f"{workload}: runs before its ConfigMap exists"


def mounts(manifests: list[Manifest]) -> Iterator[str]:
    """Each mount has its volume and each volume a mount; processes of ours may write to /tmp."""
    for workload in workloads(manifests):
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        volumes |= {each["metadata"]["name"] for each in workload.manifest["spec"].get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for each in workload.containers for mount in each.get("volumeMounts", [])}
        if mounted != volumes:
            yield f"{workload}: volumes {sorted(volumes)}, mounts {sorted(mounted)}"
        for container in workload.containers:
            paths = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
            if process_of(container) and "/tmp" not in paths:
                yield f"{workload} {container['name']}: nothing it may write to at /tmp"
    claims = {each["metadata"]["name"] for each in manifests if each["kind"] == "PersistentVolumeClaim"}
    for workload in workloads(manifests):
        for volume in workload.pod.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claims and claim not in claims:
                yield f"{workload}: claim {claim} is not there"


# References between objects


def ports(manifests: list[Manifest]) -> Iterator[str]:
    """Probes, services and NetworkPolicies name ports that the containers have."""
    for workload, container in containers(manifests):
        own = port_names([container])
        for kind in _PROBES:
            probe = container.get(kind, {})
            target = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
            if target is not None and target not in own:
                yield f"{workload} {container['name']}: {kind} asks port {target}, which it has not"
    for service in of_kind(manifests, "Service"):
        for workload in selected(service["spec"]["selector"], manifests):
            for port in service["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in port_names(workload.containers):
                    yield f"{name_of(service)}: {workload} has no port {port.get('targetPort', port['port'])}"
    for policy in of_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for workload in selected(policy["spec"]["podSelector"], manifests):
                for port in rule.get("ports", []):
                    if port["port"] not in port_names(workload.containers):
                        yield f"{name_of(policy)}: {workload} has no port {port['port']}"


def selectors(manifests: list[Manifest]) -> Iterator[str]:
    """Each selector matches pods of this release; a service's and a budget's those of exactly one workload."""
    for workload in workloads(manifests):
        selector = workload.manifest["spec"].get("selector")
        if selector is not None and workload not in selected(selector, manifests):
            yield f"{workload}: its selector does not match its own pods"
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            if workload not in selected(constraint["labelSelector"], manifests):
                yield f"{workload}: it is spread by the labels of other pods"
    for each in manifests:
        if each["kind"] == "Service":
            found = selected({"matchLabels": each["spec"]["selector"]}, manifests)
        elif each["kind"] == "PodDisruptionBudget":
            found = selected(each["spec"]["selector"], manifests)
        else:
            continue
        if len(found) != 1:
            yield f"{name_of(each)}: its selector matches {[str(one) for one in found]}, not one workload"
    for policy in of_kind(manifests, "NetworkPolicy"):
        peers = [
            peer["podSelector"]
            for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
            for peer in [*rule.get("from", []), *rule.get("to", [])]
            if "podSelector" in peer and "namespaceSelector" not in peer
        ]
        for selector in [policy["spec"]["podSelector"], *peers]:
            if not selected(selector, manifests):
                yield f"{name_of(policy)}: the selector {selector} matches no pod"
    for monitor in of_kind(manifests, "ServiceMonitor"):
        services = [
            each
            for each in of_kind(manifests, "Service")
            if matches(monitor["spec"]["selector"], each["metadata"]["labels"])
        ]
        if not services:
            yield f"{name_of(monitor)}: its selector matches no service"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in services:
                if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                    yield f"{name_of(monitor)}: {name_of(service)} has no port {endpoint['port']}"


def backends(manifests: list[Manifest]) -> Iterator[str]:
    """What a route sends requests to is a service of the release with that port."""
    services = {each["metadata"]["name"]: each["spec"]["ports"] for each in of_kind(manifests, "Service")}
    for each in manifests:
        if each["kind"] == "Ingress":
            paths = [path for rule in each["spec"]["rules"] for path in rule["http"]["paths"]]
            targets = [(path["backend"]["service"]["name"], path["backend"]["service"]["port"]) for path in paths]
            wanted = [(name, port.get("name", port.get("number"))) for name, port in targets]
        elif each["kind"] == "HTTPRoute":
            references = [reference for rule in each["spec"]["rules"] for reference in rule["backendRefs"]]
            wanted = [(reference["name"], reference["port"]) for reference in references]
        else:
            continue
        for name, port in wanted:
            if port not in {value for one in services.get(name, []) for value in (one["name"], one["port"])}:
                yield f"{name_of(each)}: no service {name} with port {port}"


def autoscalers(manifests: list[Manifest]) -> Iterator[str]:
    """One per deployment, on one that is there and leaves its replicas to it."""
    targets: Counter[str] = Counter()
    deployments = {each["metadata"]["name"]: each for each in of_kind(manifests, "Deployment")}
    for each in manifests:
        if each["kind"] not in ("HorizontalPodAutoscaler", "ScaledObject"):
            continue
        target = each["spec"]["scaleTargetRef"]["name"]
        targets[target] += 1
        if target not in deployments:
            yield f"{name_of(each)}: no deployment {target}"
        elif "replicas" in deployments[target]["spec"]:
            yield f"{name_of(each)}: deployment {target} sets replicas too, which every upgrade would go back to"
        authentications = {one["metadata"]["name"] for one in of_kind(manifests, "TriggerAuthentication")}
        for trigger in each["spec"].get("triggers", []):
            if "authenticationRef" in trigger and trigger["authenticationRef"]["name"] not in authentications:
                yield f"{name_of(each)}: no TriggerAuthentication {trigger['authenticationRef']['name']}"
    yield from (f"deployment {name} has {n} autoscalers" for name, n in targets.items() if n > 1)


Rule = Callable[[list[Manifest]], Iterator[str]]

RULES: tuple[Rule, ...] = (
    names, common_labels, *policy_security.RULES, resources, images, probes,
    grace_periods, environment_names, mounts, ports, selectors, backends, autoscalers,
)  # fmt: skip
