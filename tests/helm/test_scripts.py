"""The scripts that pods of the chart run, run as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from alignez_core.spec.config import FitConfig
from cli.local_stack.postgres import PostgresServer
from tests.helm.charts import CHART

pytestmark = pytest.mark.helm


def _run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As the pod does: the file's text as an argument of `python -c`."""
    command = [sys.executable, "-c", (CHART / "files" / script).read_text(encoding="utf-8"), *arguments]
    clean = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=clean)


def test_waiting_ends_when_postgres_lets_us_in(postgres: PostgresServer) -> None:
    done = _run("wait_for_postgres.py", "30", ALIGNEZ_DATABASE_URL=postgres.url)
    assert (done.returncode, done.stderr) == (0, "")


def test_waiting_ends_with_what_to_look_at_and_without_the_password() -> None:
    url = "postgresql+psycopg://alignez:hunter2@127.0.0.1:9/alignez"
    done = _run("wait_for_postgres.py", "0.1", ALIGNEZ_DATABASE_URL=url)
    assert done.returncode == 1
    assert "no Postgres after 0.1 s" in done.stderr
    assert "networkPolicy" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_waiting_reads_the_url_from_a_file_too(postgres: PostgresServer, tmp_path: Path) -> None:
    (tmp_path / "alignez_database_url").write_text(postgres.url, encoding="utf-8")
    done = _run("wait_for_postgres.py", "30", ALIGNEZ_SECRETS_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


# The role of the processes, in a server of its own: roles belong to the whole server.


@pytest.fixture(scope="module")
def owner_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The owner's URL of a server without the role."""
    with PostgresServer(tmp_path_factory.mktemp("roles"), durable=False) as started:
        url: str = getattr(started, "owner_url", started.url)
        _drop_role(url)
        yield url


def _drop_role(owner_url: str) -> None:
    with psycopg.connect(owner_url.replace("postgresql+psycopg://", "postgresql://")) as connection:
        connection.execute("DROP ROLE IF EXISTS alignez_app")


def _as_application(owner_url: str, password: str) -> str:
    url = make_url(owner_url).set(drivername="postgresql", username="alignez_app", password=password)
    return url.render_as_string(hide_password=False)


def _make_role(owner_url: str, password: str) -> subprocess.CompletedProcess[str]:
    return _run("application_role.py", ALIGNEZ_DATABASE_URL=owner_url, APPLICATION_PASSWORD=password)


def test_the_role_is_made_once_and_its_password_and_attributes_are_set_each_time(owner_url: str) -> None:
    first = _make_role(owner_url, "first-password")
    assert (first.returncode, first.stderr) == (0, "")
    assert "alignez_app: created" in first.stdout
    with psycopg.connect(_as_application(owner_url, "first-password")) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("alignez_app",)
    # An existing volume, on which somebody gave the role more than it may have.
    with psycopg.connect(owner_url.replace("postgresql+psycopg://", "postgresql://")) as connection:
        connection.execute("ALTER ROLE alignez_app SUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS NOLOGIN")
    again = _make_role(owner_url, "second'password")
    assert (again.returncode, again.stderr) == (0, "")
    assert "there already" in again.stdout
    with psycopg.connect(_as_application(owner_url, "second'password")) as connection:
        attributes = connection.execute(
            "SELECT rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls "
            "FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert attributes == (True, False, False, False, False, False)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(_as_application(owner_url, "first-password"))
    assert "password" not in (again.stdout + again.stderr).replace("password set", "")


def test_two_jobs_at_once_make_one_role(owner_url: str) -> None:
    _drop_role(owner_url)
    with ThreadPoolExecutor(2) as both:
        done = list(both.map(lambda _: _make_role(owner_url, "one"), range(2)))
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    assert sorted("created" in each.stdout for each in done) == [False, True]


def test_a_role_without_a_password_is_refused(owner_url: str) -> None:
    done = _make_role(owner_url, "")
    assert done.returncode == 1
    assert "database.passwordKey" in done.stderr


@contextmanager
def _server(answers: dict[tuple[str, str], Any], seen: list[tuple[str, str, Any]]) -> Iterator[str]:
    """An API by a table of answers; `{name}` in a path is the name of the profile."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
            seen.append((self.command, self.path, body))
            path = "/v1/profiles/{name}" if self.path.startswith("/v1/profiles/") else self.path
            answer = answers.get((self.command, path))
            if callable(answer):
                answer = answer(body)
            status = 401 if self.headers["authorization"] != "Bearer az_test" else 404 if answer is None else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _api(job_status: str = "succeeded", applied: bool = True) -> dict[tuple[str, str], Any]:
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        profile = body["model"].partition("@")[2].removesuffix("#1")
        return {
            "choices": [{"message": {"content": "Yay!"}}],
            "alignez": {"profile": profile if applied else None, "version": 1},
        }

    error = None if job_status == "succeeded" else {"code": "out_of_memory"}
    return {
        ("GET", "/ready"): {"status": "ready"},
        ("POST", "/v1/profiles"): {"job": {"id": "j", "status": "queued"}},
        ("GET", "/v1/jobs/j"): {"id": "j", "status": job_status, "error": error},
        ("GET", "/v1/models"): {"data": [{"id": "nano@other"}, {"id": "nano"}]},
        ("POST", "/v1/chat/completions"): chat,
        ("DELETE", "/v1/profiles/{name}"): {},
    }


def _smoke(
    answers: dict[tuple[str, str], Any], key: str = "az_test"
) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    seen: list[tuple[str, str, Any]] = []
    with _server(answers, seen) as url:
        done = _run("smoke_test.py", CONTROL_URL=url, INFERENCE_URL=url, API_KEY=key, TIMEOUT_SECONDS="20")
    return done, seen


def test_the_smoke_test_fits_generates_and_cleans_up() -> None:
    done, seen = _smoke(_api())
    assert (done.returncode, done.stderr) == (0, "")
    name = seen[2][2]["name"]
    assert [(method, path) for method, path, _ in seen] == [
        ("GET", "/ready"),
        ("GET", "/ready"),
        ("POST", "/v1/profiles"),
        ("GET", "/v1/jobs/j"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("DELETE", f"/v1/profiles/{name}"),
    ]
    assert seen[5][2]["model"] == f"nano@{name}#1"
    assert name in done.stdout


@pytest.mark.parametrize(
    ("answers", "key", "said"),
    [
        (_api("failed"), "az_test", "out_of_memory"),
        (_api(applied=False), "az_test", "not a personalised answer"),
        (_api(), "az_wrong", "401"),
        ({**_api(), ("GET", "/ready"): None}, "az_test", "/ready: 404"),
    ],
    ids=["job failed", "profile not applied", "wrong key", "not ready"],
)
def test_the_smoke_test_fails_in_words(answers: dict[tuple[str, str], Any], key: str, said: str) -> None:
    done, seen = _smoke(answers, key)
    assert done.returncode == 1
    assert said in done.stderr
    # What was made goes, whatever happened after.
    methods = {method for method, _, _ in seen}
    assert ("DELETE" in methods) == ("POST" in methods)


def test_what_the_smoke_test_reads_is_what_the_api_answers() -> None:
    """Its stand-in above answers by hand; the committed OpenAPI file says that the fields are there."""
    openapi = json.loads((CHART.parent / "api" / "openapi.json").read_text(encoding="utf-8"))
    schemas = openapi["components"]["schemas"]

    def fields(path: str, method: str, status: str) -> set[str]:
        content = openapi["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
        return set(schemas[content["$ref"].rpartition("/")[2]]["properties"])

    assert "job" in fields("/v1/profiles", "post", "202")
    assert {"id", "status", "stage", "error"} <= fields("/v1/jobs/{job}", "get", "200")
    assert "data" in fields("/v1/models", "get", "200")
    assert {"name", "persona", "fit"} <= set(schemas["ProfileCreate"]["properties"])
    assert "200" in openapi["paths"]["/ready"]["get"]["responses"]
    asked = _smoke(_api())[1][2][2]["fit"]
    assert asked.keys() <= schemas["FitBody"]["properties"].keys()
    assert FitConfig(**asked).method == "alignez"
