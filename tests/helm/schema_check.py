"""What an API server would say of an object's form: Kubernetes' own schemas, and ours for custom resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import jsonschema
import kubernetes_validate

from tests.helm.charts import Manifest
from tests.helm.objects import name_of

KUBERNETES = "1.32"
SCHEMAS = Path(__file__).parent / "schemas"


def schemas(manifests: list[Manifest]) -> Iterator[str]:
    """Types and field names: of Kubernetes for its own kinds, of `schemas/` for the others."""
    for each in manifests:
        for complaint in _schema_complaints(json.dumps(each, sort_keys=True)):
            yield f"{name_of(each)}: {complaint}"


@lru_cache(maxsize=8192)
def _schema_complaints(text: str) -> tuple[str, ...]:
    """Cached by content: the releases of a matrix share most of their objects."""
    manifest = json.loads(text)
    own = SCHEMAS / f"{manifest['kind']}.json"
    if own.exists():
        validator = jsonschema.Draft7Validator(json.loads(own.read_text(encoding="utf-8")))
        return tuple(f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest))
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'.'.join(map(str, error.path))}: {error.message}",)
    except kubernetes_validate.SchemaNotFoundError as error:
        return (error.message,)
    return ()
