"""The API over TLS, by certificate files: real HTTPS requests, and what is refused."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from alignez_core.engines.fake.engine import FakeEngine
from api import probe
from api.settings import ApiSettings
from cli.client import Client
from cli.config import Connection
from profiles.settings import read_settings
from tests.api.conftest import AppMaker, Tenant, serving
from tests.api.http.test_security_headers import HSTS
from tests.api.raw_http import raw_connection
from tests.certificates import Certificate, make_certificate
from worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def files(certificate: Certificate) -> dict[str, Path]:
    """The settings of a server with TLS."""
    return {"tls_cert": certificate.cert, "tls_key": certificate.key}


def trusting(certificate: Certificate) -> httpx.Client:
    return httpx.Client(verify=ssl.create_default_context(cafile=certificate.cert), trust_env=False, timeout=20)


def test_requests_and_streams_are_answered_over_https(
    make_app: AppMaker, certificate: Certificate, files: dict[str, Path], tenant: Tenant
) -> None:
    with serving(make_app(FakeEngine(), **files)) as (url, _), trusting(certificate) as client:
        url = url.replace("http:", "https:")
        reply = client.get(f"{url}/health")
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
        assert reply.headers[HSTS] == "max-age=31536000"
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=tenant.headers) as stream:
            assert stream.read().endswith(b"data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health", trust_env=False)


def test_plain_http_and_old_tls_are_refused(
    make_app: AppMaker, certificate: Certificate, files: dict[str, Path]
) -> None:
    with serving(make_app(role="control", **files)) as (url, _):
        with raw_connection(url) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"HTTP/" not in _rest(connection)
        context = ssl.create_default_context(cafile=certificate.cert)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # or this client itself would refuse
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with raw_connection(url) as connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_hostname="localhost")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with context.wrap_socket(raw_connection(url), server_hostname="localhost") as encrypted:
            assert encrypted.version() == "TLSv1.2"


def _rest(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection: an alert at most."""
    parts = []
    try:
        while part := connection.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_what_is_not_http_gets_hsts_too(make_app: AppMaker, certificate: Certificate, files: dict[str, Path]) -> None:
    context = ssl.create_default_context(cafile=certificate.cert)
    with (
        serving(make_app(role="control", **files)) as (url, _),
        context.wrap_socket(raw_connection(url), server_hostname="localhost") as encrypted,
    ):
        encrypted.sendall(b"nonsense\r\n\r\n")
        assert f"\r\n{HSTS}: " in encrypted.recv(4096).decode()


def test_the_command_line_trusts_what_the_environment_names(
    make_app: AppMaker,
    certificate: Certificate,
    files: dict[str, Path],
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(make_app(role="control", **files)) as (url, _):
        monkeypatch.setenv("SSL_CERT_FILE", str(files["tls_cert"]))
        with Client(Connection(url.replace("http:", "https:"), tenant.secret)) as client:
            assert client.call("GET", "/v1/profiles")["data"] == []


@pytest.mark.parametrize("tls", [True, False])
def test_the_images_health_check_follows_the_settings(
    make_app: AppMaker, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    with serving(make_app(role="control", **(files if tls else {}))) as (url, _):
        monkeypatch.setenv("ALIGNEZ_API_PORT", url.rpartition(":")[2])
        if tls:
            monkeypatch.setenv("ALIGNEZ_API_TLS_CERT", str(files["tls_cert"]))
        assert probe.main() == 0
    assert probe.main() == 1


# Settings


@pytest.mark.parametrize(
    ("kind", "variable"),
    [
        (ApiSettings, "ALIGNEZ_API_TLS"),
        (ApiSettings, "ALIGNEZ_API_METRICS_TLS"),
        (WorkerSettings, "ALIGNEZ_WORKER_METRICS_TLS"),
    ],
)
def test_certificate_and_key_are_set_together(kind: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("CERT", "KEY"):
        with monkeypatch.context() as environment:
            environment.setenv(f"{variable}_{file}", "/tls/file.pem")
            with pytest.raises(SystemExit, match=f"^alignez: {variable}_KEY: certificate and key are set together"):
                read_settings(kind)
    monkeypatch.setenv(f"{variable}_CERT", "/tls/tls.crt")
    monkeypatch.setenv(f"{variable}_KEY", "/tls/tls.key")
    settings = read_settings(kind)
    files = settings.metrics_tls if "METRICS" in variable else settings.tls
    assert (files.cert, files.key, files.setting) == (Path("/tls/tls.crt"), Path("/tls/tls.key"), variable)


@pytest.mark.parametrize(
    ("module", "variable"),
    [
        ("api.server", "ALIGNEZ_API_TLS"),
        ("api.server", "ALIGNEZ_API_METRICS_TLS"),
        ("worker", "ALIGNEZ_WORKER_METRICS_TLS"),
        ("worker.relay", "ALIGNEZ_WORKER_METRICS_TLS"),
    ],
)
def test_a_wrong_file_ends_the_process_at_once_with_one_line(
    module: str, variable: str, certificate: Certificate, postgres_url: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALIGNEZ_")}
    settings = {
        "ALIGNEZ_DATABASE_URL": postgres_url, "ALIGNEZ_API_ROLE": "control", "ALIGNEZ_API_PORT": "0",
        "ALIGNEZ_API_METRICS_PORT": "0", "ALIGNEZ_WORKER_METRICS_PORT": "0",
        f"{variable}_CERT": str(certificate.cert), f"{variable}_KEY": "/tls/missing.key",
    }  # fmt: skip
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"alignez: {variable}_KEY: cannot read /tls/missing.key (No such file or directory)\n"
