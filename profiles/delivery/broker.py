"""Access to the broker by kombu alone, for processes that do not load Celery."""

from __future__ import annotations

import ssl
from typing import Any

from kombu.connection import Connection
from kombu.exceptions import KombuError

from profiles.errors import BrokerUnavailable


def is_redis(broker_url: str) -> bool:
    """True for Redis (TCP, TLS or socket), False for RabbitMQ."""
    return broker_url.startswith(("redis://", "rediss://", "redis+socket://", "unix://"))


def tls(broker_url: str) -> dict[str, Any]:
    """kombu's `ssl` parameter for Redis with TLS; empty for other URLs.

    kombu's default checks no certificate of Redis. Parameters in the URL (`?ssl_ca_certs=…`) take precedence.
    """
    if not broker_url.startswith("rediss://"):
        return {}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}


def ping(broker_url: str, timeout_s: float = 3.0) -> None:
    """Opens a connection with a login, and closes it.

    Args:
        timeout_s: longest duration of each step.
    Raises: BrokerUnavailable.
    """
    names = ("socket_connect_timeout", "socket_timeout") if is_redis(broker_url) else ("read_timeout", "write_timeout")
    options: dict[str, Any] = dict.fromkeys(names, timeout_s)
    try:
        with Connection(
            broker_url, ssl=tls(broker_url), connect_timeout=timeout_s, transport_options=options
        ) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=timeout_s)
    except (OSError, ValueError, LookupError, KombuError) as error:
        raise BrokerUnavailable from error
