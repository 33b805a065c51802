"""Bills of materials: complete, pinned, the same each time, and valid by CycloneDX's own schema."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from images import sbom
from images.licences import pins
from tests.images.test_dockerfile import DOCKERFILE

ROOT = Path(__file__).parents[2]
PYPROJECT = str(ROOT / "pyproject.toml")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NOT_IN_CONTROL = ["torch", "transformers", "accelerate", "gguf"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    sbom.main(list(arguments))
    return dict(json.loads(capsys.readouterr().out))


def control(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return printed(capsys, "pinned", "alignez-control", PYPROJECT, str(ROOT / "constraints.txt"), *NOT_IN_CONTROL)


def test_the_control_image_has_what_it_needs_in_pinned_versions(capsys: pytest.CaptureFixture[str]) -> None:
    document = control(capsys)
    found = {each["name"]: each for each in document["components"]}
    assert {"fastapi", "starlette", "psycopg", "psycopg-binary", "redis", "celery", "h11"} <= found.keys()
    assert not {*NOT_IN_CONTROL, "pytest", "alignez"} & found.keys()
    versions = pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert all(each["version"] == versions[name] for name, each in found.items())
    assert all(each["purl"] == f"pkg:pypi/{name}@{versions[name]}" for name, each in found.items())
    assert found["fastapi"]["licenses"] == [{"expression": "MIT"}]
    needs = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert found["starlette"]["purl"] in needs[found["fastapi"]["purl"]]
    assert needs["alignez-control"]
    assert {ref for refs in needs.values() for ref in refs} <= {each["bom-ref"] for each in found.values()}


def test_the_inference_image_takes_the_pins_that_vllm_allows(capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "constraints-vllm.txt"
    document = printed(capsys, "pinned", "alignez-inference", PYPROJECT, str(file), "torch", "transformers")
    versions = pins(file.read_text(encoding="utf-8").splitlines())
    found = {each["name"]: each["version"] for each in document["components"]}
    assert found["fastapi"] == versions["fastapi"]
    assert "torch" not in found


def test_an_environment_is_listed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    document = printed(capsys, "environment", "alignez-inference")
    found = {each["name"] for each in document["components"]}
    assert {"alignez", "torch", "pytest"} <= found
    (root,) = [each for each in document["dependencies"] if each["ref"] == "alignez-inference"]
    assert root["dependsOn"][0].startswith("pkg:pypi/alignez@")
    assert not [each["purl"] for each in document["components"] if "+" in each["purl"]]


def test_the_same_packages_give_the_same_document(capsys: pytest.CaptureFixture[str]) -> None:
    first = control(capsys)
    assert control(capsys) == first
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", first["serialNumber"])
    assert first["metadata"]["component"]["version"] == tomllib.loads(Path(PYPROJECT).read_text())["project"]["version"]


@pytest.mark.parametrize("command", ["environment", "pinned"])
def test_the_document_is_valid(capsys: pytest.CaptureFixture[str], command: str) -> None:
    schemas = pytest.importorskip("cyclonedx.schema._res", reason="CycloneDX's schema: `make setup` installs it")
    from jsonschema import Draft7Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT7

    folder = Path(schemas.__file__ or "").parent
    names = {each: json.loads((folder / f"{each}.SNAPSHOT.schema.json").read_text()) for each in ("spdx", "jsf-0.82")}
    resources = [(f"{each}.SNAPSHOT.schema.json", DRAFT7.create_resource(names[each])) for each in names]
    resources += [(names[each]["$id"], DRAFT7.create_resource(names[each])) for each in names]
    registry: Any = Registry().with_resources(resources)
    schema = json.loads((folder / "bom-1.6.SNAPSHOT.schema.json").read_text())
    document = control(capsys) if command == "pinned" else printed(capsys, "environment", "alignez-control")
    validator = Draft7Validator(schema, registry=registry)
    validator.validate(document)
    assert not validator.is_valid({**document, "components": [{"type": "planted", "name": "x"}]})
    refs = [each["bom-ref"] for each in document["components"]]
    assert len(set(refs)) == len(refs)


def test_a_package_without_a_pin_is_an_error() -> None:
    known: dict[str, Distribution] = sbom.environment()
    with pytest.raises(SystemExit, match="fastapi is not pinned"):
        sbom.pinned(["fastapi"], {}, known, [])
    with pytest.raises(SystemExit, match="nothing-here is not installed here"):
        sbom.pinned(["nothing-here"], {"nothing-here": "1"}, known, [])
    assert sbom.pinned(["nothing-here; python_version < '3'"], {}, known, []) == []


@pytest.mark.parametrize(("stage", "image"), [("control-build", "alignez-control"), ("inference", "alignez-inference")])
def test_the_dockerfile_writes_it_after_the_last_package(stage: str, image: str) -> None:
    runs = [each.text for each in DOCKERFILE.stages[stage].all("RUN")]
    (at,) = [i for i, text in enumerate(runs) if f"-m images.sbom environment {image} > " in text]
    assert not [text for text in runs[at:] if "pip install" in text]


def test_make_leaves_out_what_the_dockerfile_leaves_out() -> None:
    """The packages of `make sbom` are those of the images."""
    assert f"NOT_IN_CONTROL := {' '.join(NOT_IN_CONTROL)}\n" in MAKEFILE
    texts = {name: " ".join(each.text for each in DOCKERFILE.stages[name].all("RUN")) for name in DOCKERFILE.stages}
    assert f"packages pyproject.toml {' '.join(NOT_IN_CONTROL)} >" in texts["control-build"]
    assert "packages pyproject.toml torch transformers >" in texts["inference"]
    assert "pyproject.toml constraints-vllm.txt torch transformers" in MAKEFILE
