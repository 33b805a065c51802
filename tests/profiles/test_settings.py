"""The URLs of database and broker: every usual way to write them works, and a wrong one is told in one line."""

from __future__ import annotations

import ssl

import pytest
from celery import Celery
from pydantic import ValidationError
from sqlalchemy import text

from profiles.delivery.celery_queue import broker_configuration
from profiles.settings import DatabaseSettings, read_settings
from profiles.uow import UnitOfWork, make_session_factory


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
