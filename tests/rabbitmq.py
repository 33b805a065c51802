"""The RabbitMQ server of the machine, where there is one, and what tests do with its queues."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
from kombu.connection import Connection
from kombu.message import Message

from profiles.delivery.celery_queue import dead_queue, fit_queue

RABBITMQ_URL = "amqp://guest:guest@127.0.0.1:5672//"


def require_rabbitmq() -> None:
    """Skips the test where no server runs."""
    try:
        socket.create_connection(("127.0.0.1", 5672), 1.0).close()
    except OSError:
        pytest.skip("no RabbitMQ at 127.0.0.1:5672")


def delete_queue(name: str) -> None:
    """Deletes a queue of fits and the queue of its dead letters."""
    with Connection(RABBITMQ_URL, connect_timeout=3) as connection:
        for queue in (name, dead_queue(name).name):
            connection.default_channel.queue_delete(queue)


def take(queue: str, act: Callable[[Message], None], count: int, *, task_time_limit_s: int) -> list[str]:
    """Takes messages off a queue of fits as a worker does; returns their bodies."""
    bodies: list[str] = []
    with Connection(RABBITMQ_URL, connect_timeout=3) as connection:
        bound = fit_queue(queue, RABBITMQ_URL, task_time_limit_s)(connection.default_channel)
        deadline = time.monotonic() + 10
        while len(bodies) < count:
            message = bound.get(no_ack=False)
            if message is None:
                assert time.monotonic() < deadline, "no message came"
                time.sleep(0.02)
                continue
            bodies.append(message.body if isinstance(message.body, str) else message.body.decode())
            act(message)
    return bodies


def reject(message: Message) -> None:
    message.reject(requeue=False)


def acknowledge(message: Message) -> None:
    message.ack()


def requeue(message: Message) -> None:
    message.requeue()
