"""A broker answers, or is unavailable within the given time, whatever the reason."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cli.local_stack.broker import RedisServer
from profiles.delivery.broker import ping
from profiles.errors import BrokerUnavailable


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Port of a server that accepts connections and says nothing, as a frozen broker does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_redis_answers(redis_server: RedisServer) -> None:
    ping(redis_server.url)


def test_a_wrong_password_is_no_answer(redis_server: RedisServer) -> None:
    with pytest.raises(BrokerUnavailable):
        ping(f"redis://:wrong@{redis_server.url.rpartition('@')[2]}")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "amqp", "amqps"])
def test_a_silent_broker_is_unavailable(silent_port: int, scheme: str) -> None:
    with pytest.raises(BrokerUnavailable):
        ping(f"{scheme}://127.0.0.1:{silent_port}//", timeout_s=0.1)


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//", "redis+socket:///nowhere", "amqp://127.0.0.1:99999//", "ftp://h"],
)
def test_what_cannot_be_reached_is_unavailable(url: str) -> None:
    with pytest.raises(BrokerUnavailable):
        ping(url)
