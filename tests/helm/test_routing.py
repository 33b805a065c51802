"""Where requests go: every path of the committed OpenAPI file, through the rendered Ingress and HTTPRoute."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import helm_python
import pytest
from sqlalchemy.orm import sessionmaker

from api.app import create_app
from api.settings import ApiSettings, Role
from tests.helm.charts import find, nested, render

pytestmark = pytest.mark.helm

_OPENAPI = Path(__file__).parents[2] / "api" / "openapi.json"
_EXAMPLES = {"user": "ada.lovelace@example.com", "name": "persona-nano", "number": "3"}


def _operations(role: Role) -> dict[str, set[str]]:
    """Methods by path of what a process of that role serves."""
    app = create_app(ApiSettings(role=role), session_factory=sessionmaker())
    return {path: set(operations) for path, operations in app.openapi()["paths"].items()}


def _paths() -> list[tuple[str, str]]:
    """(path with examples in it, who serves it): from what the application serves in each role."""
    inference = _operations("inference")
    everything = _operations("control")  # with generation, to say where it is
    assert everything.items() >= inference.items(), "a path has operations of both kinds"
    assert set(json.loads(_OPENAPI.read_text(encoding="utf-8"))["paths"]) == set(everything)
    found = []
    for path in sorted(set(everything) - {"/health", "/ready"}):
        example = re.sub(r"\{(\w+)\}", lambda match: _EXAMPLES.get(match[1], "one"), path)
        found.append((example, "inference" if path in inference else "control"))
    assert {served for _, served in found} == {"inference", "control"}
    return found


PATHS = [
    *_paths(),
    ("/v1/models/base@cheerful:canary", "inference"),
    ("/v1/models/Qwen/Qwen2.5-7B-Instruct", "inference"),
    ("/", "control"),
    ("/docs", "control"),
    ("/health", "control"),
    ("/v1/modelsx", "control"),
    ("/v1/chat/completions/more", "control"),
    ("/v1/profiles/chat/completions", "control"),
]


def _ingress_backend(paths: list[dict[str, Any]], path: str, *, regex: bool) -> str:
    """What the controller chooses: ingress-nginx tries regular expressions from the longest on; others go by the
    exact path, then the longest prefix of whole segments."""
    if regex:
        ordered = sorted(paths, key=lambda one: -len(one["path"]))
        chosen = next(one for one in ordered if re.match(one["path"], path, re.IGNORECASE))
    else:
        matching = [one for one in paths if _matches(one["pathType"], one["path"], path)]
        chosen = max(matching, key=lambda one: (one["pathType"] == "Exact", len(one["path"])))
    return str(chosen["backend"]["service"]["name"])


def _matches(kind: str, pattern: str, path: str) -> bool:
    if kind == "Exact":
        return path == pattern
    if kind == "RegularExpression":
        return re.fullmatch(pattern, path) is not None
    return path == pattern or path.startswith(pattern.rstrip("/") + "/")


def _route_backend(rules: list[dict[str, Any]], path: str) -> str:
    """Exact, then regular expressions, then the longest prefix."""
    matching = [
        (
            match["path"]["type"] == "Exact",
            match["path"]["type"] == "RegularExpression",
            len(match["path"]["value"]),
            rule,
        )
        for rule in rules
        for match in rule["matches"]
        if _matches(match["path"]["type"], match["path"]["value"], path)
    ]
    return str(max(matching, key=lambda one: one[:3])[3]["backendRefs"][0]["name"])


def _served_by(backend: str, expected: str, path: str, *, user_paths: str) -> bool:
    if user_paths == "all" and path.startswith("/v1/users/"):
        return backend == "rel-alignez-inference"  # which then serves everything
    return backend == f"rel-alignez-{expected}"


@pytest.mark.parametrize(("path", "expected"), PATHS)
@pytest.mark.parametrize("user_paths", ["regex", "all"])
def test_a_path_reaches_who_serves_it(path: str, expected: str, user_paths: str) -> None:
    common = {"routing.userPaths": user_paths}
    ingress = find(render(nested({**common, "ingress.enabled": True})), "Ingress", "-api")
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    backend = _ingress_backend(paths, path, regex=user_paths == "regex")
    assert _served_by(backend, expected, path, user_paths=user_paths)
    route = find(render(nested({**common, "gateway.enabled": True, "gateway.name": "g"})), "HTTPRoute", "-api")
    assert _served_by(_route_backend(route["spec"]["rules"], path), expected, path, user_paths=user_paths)


def test_user_paths_without_regular_expressions_need_pods_that_serve_everything() -> None:
    manifests = render(nested({"routing.userPaths": "all", "ingress.enabled": True}))
    assert find(manifests, "ConfigMap", "-inference")["data"]["ALIGNEZ_API_ROLE"] == "all"
    container = find(manifests, "Deployment", "-inference")["spec"]["template"]["spec"]["containers"][0]
    assert "ALIGNEZ_BROKER_URL" in {variable["name"] for variable in container["env"]}
    annotations = find(manifests, "Ingress", "-api")["metadata"]["annotations"]
    assert "nginx.ingress.kubernetes.io/use-regex" not in annotations
    broker = find(manifests, "NetworkPolicy", "-to-broker")["spec"]["podSelector"]["matchExpressions"][0]["values"]
    assert "inference" in broker


def test_an_inference_pod_does_not_get_the_broker() -> None:
    container = find(render(), "Deployment", "-inference")["spec"]["template"]["spec"]["containers"][0]
    assert "ALIGNEZ_BROKER_URL" not in {variable["name"] for variable in container["env"]}


def test_the_ingress_lets_tokens_through_as_they_come() -> None:
    values = nested({"ingress.enabled": True, "routing.streamTimeoutSeconds": 900, "ingress.tlsSecret": "tls"})
    values["ingress"]["annotations"] = {"nginx.ingress.kubernetes.io/proxy-body-size": "8m", "example.com/a": "b"}
    ingress = find(render(values), "Ingress", "-api")
    annotations = ingress["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert annotations[f"{prefix}proxy-buffering"] == "off"
    assert annotations[f"{prefix}proxy-read-timeout"] == annotations[f"{prefix}proxy-send-timeout"] == "900"
    assert annotations[f"{prefix}use-regex"] == "true"
    assert annotations[f"{prefix}proxy-body-size"] == "8m", "the operator's annotation wins"
    assert annotations["example.com/a"] == "b"
    assert ingress["spec"]["tls"] == [{"hosts": ["alignez.example.com"], "secretName": "tls"}]
    assert ingress["spec"]["ingressClassName"] == "nginx"


def test_the_route_belongs_to_its_gateway() -> None:
    settings = {"gateway.enabled": True, "gateway.name": "public", "gateway.sectionName": "https"}
    route = find(render(nested(settings)), "HTTPRoute", "-api")
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "ns", "sectionName": "https"}]
    assert {rule["timeouts"]["request"] for rule in route["spec"]["rules"]} == {"3600s"}


def test_a_stream_s_time_is_one_that_a_gateway_takes() -> None:
    longest = {"gateway.enabled": True, "gateway.name": "g", "routing.streamTimeoutSeconds": 99_999}
    rules = find(render(nested(longest)), "HTTPRoute", "-api")["spec"]["rules"]
    assert {rule["timeouts"]["request"] for rule in rules} == {"99999s"}
    with pytest.raises(helm_python.HelmValuesError, match="streamTimeoutSeconds"):  # five digits are the API's limit
        render(nested({**longest, "routing.streamTimeoutSeconds": 100_000}))
