"""Settings from files: `ALIGNEZ_SECRETS_DIR` names a directory with a file per secret, for every process."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from profiles.errors import SecretsDirMissing
from profiles.settings import DatabaseSettings, read_settings
from worker.settings import WorkerSettings


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of ALIGNEZ_SECRETS_DIR, linked as Kubernetes mounts a secret's keys."""
    directory, data = tmp_path / "secrets", tmp_path / "secrets" / "..2026_01_01"
    data.mkdir(parents=True)
    (directory / "..data").symlink_to(data.name)
    files = {
        "alignez_database_url": "postgres://app:from-file@h/d\n",
        "ALIGNEZ_BROKER_URL": "amqp://u:from-file@h:5672/",
        "alignez_model_revision": "abc",
        "alignez_worker_judge_key": "key-from-file",
        "alignez_judges": '["openai"]',
    }
    for name, content in files.items():
        (data / name).write_text(content, encoding="utf-8")
        (directory / name).symlink_to(f"..data/{name}")
    monkeypatch.setenv("ALIGNEZ_SECRETS_DIR", str(directory))
    return directory


def test_settings_are_read_from_files_named_like_their_variables(secrets: Path) -> None:
    database = read_settings(DatabaseSettings)
    assert database.database_url == "postgresql+psycopg://app:from-file@h/d"
    assert database.broker_url == "amqp://u:from-file@h:5672/"


def test_api_and_worker_read_the_files_too(secrets: Path) -> None:
    api, worker = read_settings(ApiSettings), read_settings(WorkerSettings)
    assert (api.model_revision, api.judges) == ("abc", ("openai",))
    assert worker.model_revision == "abc"
    assert worker.judge_key is not None
    assert worker.judge_key.get_secret_value() == "key-from-file"


def test_a_variable_takes_precedence_over_a_file(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNEZ_DATABASE_URL", "postgresql://app:from-variable@h/d")
    assert "from-variable" in read_settings(DatabaseSettings).database_url
    assert "from-argument" in DatabaseSettings(database_url="postgresql://app:from-argument@h/d").database_url


def test_a_wrong_file_ends_the_process_in_one_line_without_its_content(secrets: Path) -> None:
    (secrets / "..data" / "alignez_database_url").write_text("mysql://u:secret@h/d", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        read_settings(DatabaseSettings)
    assert str(ended.value).startswith("alignez: ALIGNEZ_DATABASE_URL: ")
    assert "secret" not in str(ended.value)


@pytest.mark.parametrize("kind", [DatabaseSettings, ApiSettings, WorkerSettings])
@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_secrets_directory_that_is_none_ends_the_process_in_one_line(
    kind: type[BaseSettings], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ALIGNEZ_SECRETS_DIR", str(tmp_path / name))
    with pytest.raises(SystemExit) as ended:
        read_settings(kind)
    assert str(ended.value) == f"alignez: ALIGNEZ_SECRETS_DIR: there is no directory {tmp_path / name}"
    with pytest.raises(SecretsDirMissing):
        kind()


def test_without_the_variable_no_file_is_read(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNEZ_SECRETS_DIR")
    monkeypatch.chdir(secrets)
    assert "from-file" not in read_settings(DatabaseSettings).database_url
