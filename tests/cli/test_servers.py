"""The embedded Postgres and Redis: they keep data, restart, and never outlive the process that started them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import make_url

from cli.errors import AlreadyRunning, MissingWheel, StackError
from cli.local_stack import broker, postgres
from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
from tests.worker.processes import children, runs


def query(url: str, sql: str) -> object:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.05)


def test_postgres_keeps_data_port_and_password_over_a_restart_and_has_pgvector(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path)
    url = server.start()
    owner_url = server.owner_url
    query(owner_url, "CREATE EXTENSION vector")
    query(owner_url, "CREATE TABLE kept (v vector(3))")
    query(owner_url, "INSERT INTO kept VALUES ('[1,2,3]')")
    query(owner_url, "GRANT SELECT ON kept TO alignez_app")
    assert str(query(url, "SHOW server_version")).startswith("16.")
    assert query(url, "SHOW fsync") == "on"
    server.stop()
    assert server.pid is None
    with PostgresServer(tmp_path) as again:
        assert (again.url, again.owner_url) == (url, owner_url)
        assert query(url, "SELECT v::text FROM kept") == "[1,2,3]"


def test_processes_connect_to_postgres_as_a_role_without_rights_of_its_own(tmp_path: Path) -> None:
    rights = (
        "SELECT rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    )
    with PostgresServer(tmp_path) as server:
        assert query(server.url, "SELECT current_user") == "alignez_app"
        assert query(server.url, rights) is False
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            query(server.url, "CREATE TABLE own (n int)")
    (tmp_path / "app.password").unlink()
    with PostgresServer(tmp_path) as server:  # a lost password is replaced
        assert query(server.url, "SELECT current_user") == "alignez_app"


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "postgres"), RedisServer(tmp_path / "broker"):
        for name in ("postgres/password", "postgres/app.password", "broker/password", "broker/redis.conf"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
        assert stat.S_IMODE((tmp_path / "postgres/cluster").stat().st_mode) == 0o700


def test_postgres_asks_for_the_password(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        for url in (server.url, server.owner_url):
            wrong = make_url(url).set(password="wrong").render_as_string(hide_password=False)
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                query(wrong, "SELECT 1")


def test_a_killed_postgres_starts_again_on_the_same_url_with_its_committed_data(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        url = server.owner_url
        query(url, "CREATE TABLE kept (n int)")
        query(url, "INSERT INTO kept VALUES (7)")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.pid is None)
        server.start()
        assert server.owner_url == url
        assert query(url, "SELECT n FROM kept") == 7


def test_a_cluster_half_made_by_a_killed_initdb_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "cluster" / "base").mkdir(parents=True)
    (tmp_path / "init-killed" / "cluster").mkdir(parents=True)
    with PostgresServer(tmp_path) as server:
        assert query(server.url, "SELECT 1") == 1
    assert not list(tmp_path.glob("init-*"))


def test_a_pid_file_that_names_an_unrelated_process_does_not_stop_a_start(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        kept = (tmp_path / "cluster" / "postmaster.pid").read_text()
    stale = "\n".join([str(os.getpid()), *kept.split("\n")[1:]])
    (tmp_path / "cluster" / "postmaster.pid").write_text(stale)
    with PostgresServer(tmp_path) as server:
        assert query(server.url, "SELECT 1") == 1


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
            PostgresServer(tmp_path).start()
        assert query(server.url, "SELECT 1") == 1


def test_a_port_that_somebody_took_meanwhile_is_replaced(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "a") as first:
        taken = first.url.rsplit(":", 1)[1].split("/")[0]
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "port").write_text(taken)
        with PostgresServer(tmp_path / "b") as second:
            assert f":{taken}/" not in second.url
            assert query(second.url, "SELECT 1") == 1


def test_a_very_long_data_path_is_no_problem(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / ("d" * 120) / ("e" * 60)) as server:
        assert query(server.url, "SELECT 1") == 1


def test_redis_keeps_messages_over_a_restart_and_asks_for_the_password(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    url = server.start()
    with redis.Redis.from_url(url) as client:
        client.lpush("queue", "message")
    server.stop()
    with RedisServer(tmp_path) as again:
        assert again.url == url
        with redis.Redis.from_url(url) as client:
            assert client.lrange("queue", 0, -1) == [b"message"]
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        assert not broker.ping(port, "wrong")


def test_a_killed_redis_starts_again_on_the_same_url(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        url = server.url
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.pid is None)
        assert server.start() == url
        with redis.Redis.from_url(url) as client:
            assert client.ping()


def test_a_broken_append_only_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("this is not redis protocol\r\n" * 20)
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
    assert list(tmp_path.glob("appendonly.aof.broken-*"))


PARENT = """
import sys, time
from cli.local_stack.broker import RedisServer
from cli.local_stack.postgres import PostgresServer
PostgresServer(sys.argv[1] + "/postgres").start()
RedisServer(sys.argv[1] + "/broker").start()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_nothing_outlives_a_parent_however_it_dies(tmp_path: Path, death: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"ready\n"
            started = children(parent.pid)
            assert {"postgres", "redis-server"} <= {child.name() for child in started}
        finally:
            parent.send_signal(death)
    wait_until(lambda: not any(runs(child) for child in started))
    with PostgresServer(tmp_path / "postgres") as server:  # and the directory is usable again
        assert query(server.url, "SELECT 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_may_keep_everything_where_only_root_may_go(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    with PostgresServer(hidden / "postgres") as server:
        assert query(server.url, "SELECT 1") == 1
        assert server.pid is not None
        assert psutil.Process(server.pid).uids().real != 0


def test_a_missing_wheel_names_the_setting_for_an_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingWheel, match="ALIGNEZ_DATABASE_URL"):
        postgres.find_binaries()
    with pytest.raises(MissingWheel, match="ALIGNEZ_BROKER_URL"):
        broker.find_binary()


def test_a_cluster_of_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("15\n")
    with pytest.raises(StackError, match="Postgres 15, this is 16"):
        PostgresServer(tmp_path).start()
