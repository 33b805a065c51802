"""Values are documented, and have a schema; the schemas themselves are in order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import values_doc
from tests.helm.charts import CHART, PROFILES, values_of

pytestmark = pytest.mark.helm

_README = (CHART / "README.md").read_text(encoding="utf-8")
_VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")
_SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
_SCHEMAS = Path(__file__).parent / "schemas"


def test_every_value_has_a_comment() -> None:
    assert [value.path for value in values_doc.documented_values(_VALUES) if not value.comment] == []


def test_a_value_without_comment_would_be_found() -> None:
    found = values_doc.documented_values("a:\n  # -- What b is,\n  # and more.\n  b: 1\n  c: {}\n")
    assert found == [values_doc.Value("a.b", 1, "What b is, and more."), values_doc.Value("a.c", {}, "")]


def test_the_readme_has_the_table_of_values() -> None:
    assert values_doc.with_table(_README, _VALUES) == _README, "run: python -m tests.helm.values_doc"


@pytest.mark.parametrize("value", values_doc.documented_values(_VALUES), ids=lambda value: value.path)
def test_a_value_is_in_the_readme_and_in_the_schema_with_its_comment(value: values_doc.Value) -> None:
    assert f"| `{value.path}` |" in _README
    node = _SCHEMA
    for key in value.path.split("."):
        node = node["properties"][key]
    assert node["description"] == value.comment


def _objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place that describes an object."""
    if "properties" in schema:
        yield path, schema
    for keyword in ("properties", "patternProperties"):
        for key, child in schema.get(keyword, {}).items():
            yield from _objects(child, f"{path}/{key}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield from _objects(schema[keyword], f"{path}/{keyword}")
    for number, child in enumerate(schema.get("oneOf", [])):
        yield from _objects(child, f"{path}/{number}")


@pytest.mark.parametrize("file", [CHART / "values.schema.json", *sorted(_SCHEMAS.glob("*.json"))], ids=lambda f: f.name)
def test_a_schema_lets_no_unknown_key_pass(file: Path) -> None:
    schema = json.loads(file.read_text(encoding="utf-8"))
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    found = dict(_objects(schema))
    assert len(found) > 3
    assert [path for path, node in found.items() if node.get("additionalProperties") is not False] == []


def test_the_schema_has_no_value_that_there_is_not() -> None:
    def missing(schema: dict[str, Any], values: Any, path: str = "") -> Iterator[str]:
        for key, child in schema.get("properties", {}).items():
            if not isinstance(values, dict) or key not in values:
                yield f"{path}{key}"
            elif values[key] and "properties" in child:
                yield from missing(child, values[key], f"{path}{key}.")

    assert set(missing(_SCHEMA, yaml.safe_load(_VALUES))) == {"global"}


def _check_jsonschema(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_schemas_are_valid_schemas_and_profiles_valid_values(tmp_path: Path) -> None:
    schemas = [CHART / "values.schema.json", *sorted(_SCHEMAS.glob("*.json"))]
    done = _check_jsonschema("--check-metaschema", *schemas)
    assert done.returncode == 0, done.stdout + done.stderr
    profiles = [CHART / name for name in PROFILES]
    done = _check_jsonschema("--schemafile", schemas[0], *profiles)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("control: {replicas: many}\n", encoding="utf-8")
    assert _check_jsonschema("--schemafile", schemas[0], wrong).returncode == 1


@pytest.mark.parametrize("profile", ["values.small.yaml", "values.production.yaml"])
def test_a_profile_pins_its_model(profile: str) -> None:
    revision = values_of(profile)["model"]["revision"]
    assert len(revision) == 40
    assert int(revision, 16)
    assert profile in _README
