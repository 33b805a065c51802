"""A scrape reads the names that dashboard and alerts ask for, whatever it accepts; over HTTPS with a certificate."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from telemetry.metrics_server import MetricsServer
from telemetry.tls import TlsFiles
from tests.certificates import make_certificate

#: What Prometheus 2.42 and 3.4 send.
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize("accept", [PROMETHEUS_2, PROMETHEUS_3, "text/plain", "*/*", ""])
def test_names_with_a_colon_keep_it(accept: str) -> None:
    registry = CollectorRegistry()
    Counter("alignez:prompt_tokens", "", registry=registry).inc(7)
    Histogram("alignez:time_to_first_token_seconds", "", registry=registry, buckets=(1, 2)).observe(1.5)
    server = MetricsServer.start(registry, "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.port}/metrics"
        reply = httpx.get(url, headers={"Accept": accept}, trust_env=False)
    finally:
        server.stop()
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.text.splitlines()
    assert "alignez:prompt_tokens_total 7.0" in lines
    assert 'alignez:time_to_first_token_seconds_bucket{le="2.0"} 1.0' in lines


def test_a_liveness_probe_has_its_own_path() -> None:
    registry, alive = CollectorRegistry(), [True]
    Counter("events", "", registry=registry).inc()
    server = MetricsServer.start(registry, "127.0.0.1", 0, alive=lambda: alive[0])
    try:
        url = f"http://127.0.0.1:{server.port}"
        good = httpx.get(f"{url}/alive", trust_env=False)
        alive[0] = False
        bad = httpx.get(f"{url}/alive", trust_env=False)
        metrics = httpx.get(f"{url}/metrics", trust_env=False)
    finally:
        server.stop()
    assert (good.status_code, bad.status_code) == (200, 503)
    assert "events_total 1.0" in metrics.text


def test_without_a_check_the_path_is_nothing_special() -> None:
    server = MetricsServer.start(CollectorRegistry(), "127.0.0.1", 0)
    try:
        assert httpx.get(f"http://127.0.0.1:{server.port}/alive", trust_env=False).status_code == 200
    finally:
        server.stop()


def test_a_certificate_makes_it_https_alone(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    registry = CollectorRegistry()
    Counter("alignez:prompt_tokens", "", registry=registry).inc(7)
    server = MetricsServer.start(registry, "127.0.0.1", 0, tls=TlsFiles(made.cert, made.key, "X"))
    address = f"127.0.0.1:{server.port}"
    try:
        with socket.create_connection(("127.0.0.1", server.port)):  # sends nothing, and holds nobody up
            context = ssl.create_default_context(cafile=made.cert)
            reply = httpx.get(f"https://{address}/metrics", verify=context, trust_env=False, timeout=5)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://{address}/metrics", trust_env=False, timeout=5)
            again = httpx.get(f"https://{address}/metrics", verify=context, trust_env=False, timeout=5)
    finally:
        server.stop()
    assert "alignez:prompt_tokens_total 7.0" in reply.text.splitlines()
    assert again.status_code == 200
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port))


def test_a_wrong_certificate_starts_no_server(tmp_path: Path) -> None:
    missing = TlsFiles(tmp_path / "none.crt", tmp_path / "none.key", "ALIGNEZ_API_METRICS_TLS")
    with pytest.raises(SystemExit, match="ALIGNEZ_API_METRICS_TLS_CERT"):
        MetricsServer.start(CollectorRegistry(), "127.0.0.1", 0, tls=missing)
