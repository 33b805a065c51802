"""Connections that send nothing, or never an end, and more of them than allowed: on the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.conftest import Tenant, serving
from tests.api.raw_http import closed_by_server, raw_connection, read_reply

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def post(tenant: Tenant, length: int) -> bytes:
    """The head of a request whose body is still to come."""
    lines = ["POST /v1/profiles HTTP/1.1", "host: x", f"authorization: Bearer {tenant.secret}"]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


@pytest.mark.parametrize("sent", [b"", HEALTH[:-2]], ids=["nothing", "half the headers"])
def test_a_connection_without_complete_headers_is_closed(make_app: Any, sent: bytes) -> None:
    app = make_app(role="control", header_timeout_s=0.2)
    with serving(app) as (url, server), raw_connection(url) as connection:
        connection.sendall(sent)
        assert closed_by_server(connection)
        assert not server.server_state.connections


def test_the_headers_of_a_later_request_have_the_same_time(make_app: Any) -> None:
    app = make_app(role="control", header_timeout_s=0.2)
    with serving(app) as (url, _), raw_connection(url) as connection:
        for _ in range(2):
            connection.sendall(HEALTH)
            assert read_reply(connection)[0] == 200
        connection.sendall(HEALTH[:-2])
        assert closed_by_server(connection)


def test_a_connection_that_idles_after_an_answer_stays_open(make_app: Any) -> None:
    app = make_app(role="control", header_timeout_s=0.1)
    with serving(app) as (url, _), raw_connection(url) as idle, raw_connection(url) as silent:
        idle.sendall(HEALTH)
        assert read_reply(idle)[0] == 200
        assert closed_by_server(silent)  # so the time for headers has passed
        idle.sendall(HEALTH)
        assert read_reply(idle)[0] == 200


def test_a_body_that_does_not_come_gets_408_and_the_connection_is_closed(make_app: Any, tenant: Tenant) -> None:
    app = make_app(role="control", body_timeout_s=0.2)
    with serving(app) as (url, _), raw_connection(url) as connection:
        connection.sendall(post(tenant, 100) + b'{"name"')
        status, body = read_reply(connection)
        assert (status, json.loads(body)["error"]["code"]) == (408, "body_too_slow")
        assert closed_by_server(connection)


def test_a_body_that_nobody_reads_has_the_same_time(make_app: Any) -> None:
    app = make_app(role="control", body_timeout_s=0.2)
    with serving(app) as (url, _), raw_connection(url) as connection:
        connection.sendall(b"POST /v1/profiles HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        assert read_reply(connection)[0] == 401
        assert closed_by_server(connection)


def test_connections_over_the_limit_get_503_and_others_are_served(make_app: Any) -> None:
    app = make_app(role="control", max_connections=2)
    with serving(app) as (url, _), raw_connection(url) as first, raw_connection(url) as second:
        for connection in (first, second):
            connection.sendall(HEALTH)
            assert read_reply(connection)[0] == 200
        with raw_connection(url) as third:
            assert read_reply(third)[0] == 503
            assert closed_by_server(third)
        first.sendall(HEALTH)
        assert read_reply(first)[0] == 200
