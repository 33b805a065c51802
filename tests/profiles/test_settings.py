"""Settings of database and broker: every usual form of a URL works, secrets may be files, errors are one line."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from celery import Celery
from pydantic import ValidationError
from pydantic_settings import BaseSettings
from sqlalchemy import text

from api.settings import ApiSettings
from profiles.delivery.celery_queue import broker_configuration
from profiles.errors import SecretsDirMissing
from profiles.settings import DatabaseSettings, read_settings
from profiles.uow import UnitOfWork, make_session_factory
from worker.settings import WorkerSettings


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_scheme_of_postgres_is_taken(scheme: str) -> None:
    settings = DatabaseSettings(database_url=f"{scheme}://u:p%40ss@h:1/d?sslmode=require")
    assert settings.database_url == "postgresql+psycopg://u:p%40ss@h:1/d?sslmode=require"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ALIGNEZ_DATABASE_URL", "mysql://u:secret@h/d", "got the scheme 'mysql'"),
        ("ALIGNEZ_DATABASE_URL", "u:secret@h/d", "postgresql://user:password@host:5432/database"),
        ("ALIGNEZ_DATABASE_URL", "postgres://u:secret@h:port/d", "postgresql://user:password@host:5432/database"),
        ("ALIGNEZ_BROKER_URL", "http://u:secret@h", "got the scheme 'http'"),
        ("ALIGNEZ_BROKER_URL", "redis://u:secret@h:port/0", "redis://host:6379/0"),
        ("ALIGNEZ_POOL_SIZE", "many", "integer"),
    ],
)
def test_a_wrong_setting_ends_the_process_in_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        read_settings(DatabaseSettings)
    line = str(ended.value)
    assert line.startswith(f"alignez: {name}: ")
    assert expected in line
    assert "\n" not in line
    with pytest.raises(ValidationError) as error:
        DatabaseSettings()
    assert "secret" not in line + str(error.value)


def test_options_of_the_url_are_kept_beside_our_own(postgres_url: str) -> None:
    given = "options=-c%20search_path%3Dpg_catalog%20-c%20timezone%3DAsia/Tokyo"
    sessions = make_session_factory(f"{postgres_url}?{given}&application_name=shown&connect_timeout=7")
    try:
        with UnitOfWork.open(sessions) as uow:
            shown = {
                name: uow.session.scalar(text(f"SHOW {name}"))
                for name in ("search_path", "timezone", "statement_timeout", "application_name")
            }
    finally:
        sessions.kw["bind"].dispose()
    assert shown == {
        "search_path": "pg_catalog", "timezone": "Asia/Tokyo", "statement_timeout": "30s", "application_name": "shown"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://h:6379/0", ssl.CERT_REQUIRED),
        ("REDISS://h:6379/0", ssl.CERT_REQUIRED),
        ("Rediss://:S%2Fecret@H:6379/0", ssl.CERT_REQUIRED),
        ("rediss://h:6379/0?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_redis_over_tls_has_its_certificate_checked_unless_the_url_says_no(url: str, expected: int) -> None:
    url = DatabaseSettings(broker_url=url).broker_url
    app = Celery(set_as_current=False)
    app.conf.update(broker_configuration(url))
    with app.connection_for_write() as connection:
        assert connection.ssl["ssl_cert_reqs"] == expected


def test_redis_without_tls_has_none() -> None:
    app = Celery(set_as_current=False)
    app.conf.update(broker_configuration("redis://h:6379/0"))
    with app.connection_for_write() as connection:
        assert not connection.ssl


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
