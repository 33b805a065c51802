"""The committed OpenAPI file: `python -m api.openapi_file` writes it."""

from __future__ import annotations

import json
from pathlib import Path

from api.app import create_app
from api.settings import ApiSettings

FILE = Path(__file__).with_name("openapi.json")


def render() -> str:
    """The file's text: deterministic, so that a change shows as a difference."""
    schema = create_app(ApiSettings(role="all")).openapi()
    schema["info"]["version"] = "1"  # the API's own; the package's number must not change the file
    return json.dumps(schema, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
