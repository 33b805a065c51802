"""Loading, rendering and altering the chart, without a cluster."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[2] / "helm"
PROFILES = ("values.yaml", "values.small.yaml", "values.production.yaml", "values.lint.yaml")

Manifest = dict[str, Any]

#: What KEDA needs to scale workers and inference.
KEDA = {
    "worker.autoscaling.enabled": True,
    "inference.autoscaling.enabled": True,
    "keda.prometheusAddress": "http://prometheus.monitoring:9090",
}


def values_of(name: str) -> dict[str, Any]:
    """A values file of the chart."""
    loaded: dict[str, Any] = yaml.safe_load((CHART / name).read_text(encoding="utf-8"))
    return loaded


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values from dotted paths, as `--set` takes them: {"a.b": 1} is {"a": {"b": 1}}."""
    values: dict[str, Any] = {}
    for path, value in settings.items():
        node = values
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return values


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, as several `-f` files are."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def texts(
    values: Mapping[str, Any] | None = None, *, chart: Path = CHART, release: str = "rel", upgrade: bool = False
) -> dict[str, str]:
    """Rendered text by template path."""
    with helm_python.Chart.load(chart) as loaded:
        rendered: dict[str, str] = loaded.render(
            dict(values or {}), name=release, namespace="ns", is_install=not upgrade, is_upgrade=upgrade
        )
    return rendered


def render(
    values: Mapping[str, Any] | None = None, *, chart: Path = CHART, release: str = "rel", upgrade: bool = False
) -> list[Manifest]:
    """Every object that a release would make."""
    rendered = texts(values, chart=chart, release=release, upgrade=upgrade)
    return [manifest for name, text in sorted(rendered.items()) if name.endswith(".yaml") for manifest in _load(text)]


def _load(text: str) -> list[Manifest]:
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Manifest]:
    """Cached, because YAML is slow to read and releases of a matrix share most of their objects."""
    return [document for document in yaml.load_all(text, Loader=_StrictLoader) if document]


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The object of that kind whose name ends so."""
    found = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} end in {name}"
    return found[0]


def kinds(manifests: list[Manifest]) -> set[str]:
    return {each["kind"] for each in manifests}


def pod(manifests: list[Manifest], component: str, kind: str = "Deployment") -> dict[str, Any]:
    spec: dict[str, Any] = find(manifests, kind, f"-{component}")["spec"]["template"]["spec"]
    return spec


def container(manifests: list[Manifest], component: str, kind: str = "Deployment") -> dict[str, Any]:
    first: dict[str, Any] = pod(manifests, component, kind)["containers"][0]
    return first


def variables(manifests: list[Manifest], component: str, kind: str = "Deployment") -> dict[str, Any]:
    """Value, or secret and key, by name."""
    found = {}
    for each in container(manifests, component, kind)["env"]:
        reference = each.get("valueFrom", {}).get("secretKeyRef")
        found[each["name"]] = (reference["name"], reference["key"]) if reference else each["value"]
    return found


def configuration(manifests: list[Manifest], component: str) -> dict[str, str]:
    data: dict[str, str] = find(manifests, "ConfigMap", f"-{component}")["data"]
    return data


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that stands twice in one mapping, of which YAML readers silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        doubled = {key for key in keys if keys.count(key) > 1}
        if doubled:
            raise yaml.constructor.ConstructorError(None, None, f"keys stand twice: {doubled}", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
