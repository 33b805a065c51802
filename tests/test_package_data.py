"""The wheel ships every file that the packages read."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
PACKAGES = ["alignez_core", "api", "cli", "migrations", "profiles", "telemetry", "worker"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_data_file_of_a_package_is_named_as_package_data(package: str) -> None:
    folder = ROOT / package
    shipped = {path for pattern in SETTINGS.get(package, []) for path in folder.glob(pattern)}
    data = {
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md") and "__pycache__" not in path.parts
    }
    assert data <= shipped
    if package == "alignez_core":
        assert folder / "models/persona_nano/styles.toml" in data
