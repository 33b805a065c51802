"""Which server a client command talks to, and with which key."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.config import Connection, RunInfo, default_data_dir, resolve_connection
from cli.errors import CliError
from cli.main import app


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """The data directory of a stack."""
    (tmp_path / "operator.key").write_text("az_local\n")
    RunInfo("http://127.0.0.1:4567", str(tmp_path / "operator.key"), "http://127.0.0.1:4568/metrics", {"api": 1}).write(
        tmp_path
    )
    return tmp_path


def test_the_running_stack_is_the_default(running: Path) -> None:
    assert resolve_connection(None, None, running) == Connection("http://127.0.0.1:4567", "az_local")


def test_a_given_server_and_key_win(running: Path) -> None:
    assert resolve_connection("https://there/v1/", "az_mine", running) == Connection("https://there", "az_mine")


def test_the_local_key_never_travels_to_another_server(running: Path) -> None:
    with pytest.raises(CliError, match="no key for https://there"):
        resolve_connection("https://there", None, running)


def test_without_a_stack_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="alignez up"):
        resolve_connection(None, None, tmp_path)


def test_an_address_without_a_scheme_is_refused(running: Path) -> None:
    with pytest.raises(CliError, match="http://"):
        resolve_connection("localhost:8000", "k", running)


@pytest.mark.parametrize("key", ["ключ", "az_a\nb"])
def test_a_key_that_no_header_can_carry_is_refused(running: Path, key: str) -> None:
    with pytest.raises(CliError, match="copy it again"):
        resolve_connection("https://there", key, running)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": "x"}'])
def test_a_broken_run_file_is_no_stack(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert RunInfo.read(tmp_path) is None


def test_run_info_survives_its_file(running: Path) -> None:
    info = RunInfo.read(running)
    assert info is not None
    assert info.pids == {"api": 1}


def test_the_data_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ALIGNEZ_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "alignez"
    monkeypatch.setenv("ALIGNEZ_DATA_DIR", str(tmp_path / "mine"))
    assert default_data_dir() == tmp_path / "mine"


def test_env_prints_lines_for_a_shell_and_ignores_an_earlier_stack(tmp_path: Path) -> None:
    key_file = tmp_path / "operator.key"
    key_file.write_text("az_it's\n", encoding="utf-8")
    RunInfo("http://127.0.0.1:4321", str(key_file), "").write(tmp_path)
    result = CliRunner().invoke(app, ["--data-dir", str(tmp_path), "env"], env={"ALIGNEZ_URL": "http://old:1"})
    assert result.exit_code == 0, result.output
    said = subprocess.run(
        ["sh", "-c", f'{result.stdout}echo "$ALIGNEZ_URL $ALIGNEZ_KEY"'], capture_output=True, text=True, check=True
    )
    assert said.stdout == "http://127.0.0.1:4321 az_it's\n"


def test_env_says_that_there_is_no_stack(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--data-dir", str(tmp_path), "env", "--wait", "0.01"])
    assert result.exit_code == 1
    assert "alignez up" in result.stderr
