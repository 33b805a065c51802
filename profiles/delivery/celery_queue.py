"""The job queue on Celery, and the common configuration of sender and worker."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.exceptions import KombuError, OperationalError

from profiles.delivery.broker import is_redis, tls
from profiles.errors import BrokerUnavailable

FIT_TASK = "worker.fit_profile"
FIT_QUEUE = "fits"

#: The broker redelivers the message of a dead worker after the task's time limit plus this margin. The relay's sweep
#: sends another message much earlier, when the lease ends.
_REDELIVERY_MARGIN_S = 600

#: A message that killed this many workers is put aside. Its job fails much earlier.
_DELIVERIES = 20


def redelivery_s(task_time_limit_s: int) -> int:
    """Redelivery time of the broker in seconds, longer than the longest job, which would otherwise run twice."""
    return task_time_limit_s + _REDELIVERY_MARGIN_S


def fit_queue(queue: str, broker_url: str, task_time_limit_s: int) -> Queue:
    """The queue of jobs, as every process has to declare it."""
    arguments: dict[str, Any] = {}
    if not is_redis(broker_url):
        arguments = {
            # A quorum queue survives the loss of a node. Rejected messages, and messages that were delivered too
            # often, go to the dead queue.
            "x-queue-type": "quorum",
            "x-delivery-limit": _DELIVERIES,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead_queue(queue).name,
            # RabbitMQ's own redelivery time, milliseconds; 30 min by default.
            "x-consumer-timeout": redelivery_s(task_time_limit_s) * 1000,
        }
    return Queue(queue, queue_arguments=arguments, durable=True)


def dead_queue(queue: str) -> Queue:
    """The queue of dead letters of `queue`. In a classic queue, reading a message does not count as a delivery."""
    return Queue(f"{queue}.dead", durable=True)


def broker_configuration(
    broker_url: str, *, task_time_limit_s: int = 6 * 3600, queue: str = FIT_QUEUE
) -> dict[str, Any]:
    """Celery settings on which sender and worker must agree.

    Args:
        task_time_limit_s: duration of the longest job; see `redelivery_s`.
        queue: name of the queue; tests use their own.
    """
    options: dict[str, Any] = {"socket_timeout": 10, "socket_connect_timeout": 5, "socket_keepalive": True}
    options |= {
        "visibility_timeout": redelivery_s(task_time_limit_s),
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
    }
    if not is_redis(broker_url):
        options = {"confirm_publish": True, "connect_timeout": 5, "read_timeout": 10, "write_timeout": 10}
    return {
        "broker_url": broker_url,
        "broker_use_ssl": tls(broker_url),
        "broker_transport_options": options,
        "broker_connection_timeout": 5,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_queues": [fit_queue(queue, broker_url, task_time_limit_s)],
        "task_default_queue": queue,
        "task_routes": {FIT_TASK: {"queue": queue}},
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_time_limit": task_time_limit_s,
        "worker_send_task_events": False,
        "enable_utc": True,
    }


class CeleryQueue:
    """Publishes `worker.fit_profile(job_id)`; the broker confirms each message.

    RabbitMQ sends publisher confirms; the answer to the push is the confirmation of Redis.

    Args:
        queue: name of the queue; tests use their own.
    """

    def __init__(self, broker_url: str, *, queue: str = FIT_QUEUE, task_time_limit_s: int = 6 * 3600) -> None:
        self._app = Celery("alignez-relay", set_as_current=False)
        self._app.conf.update(broker_configuration(broker_url, queue=queue, task_time_limit_s=task_time_limit_s))
        self._url = broker_url
        self._queue = queue
        self._connection: Connection | None = None
        transport = self._app.connection_for_write().transport
        self._errors: tuple[type[Exception], ...] = (
            OSError, OperationalError, KombuError, *transport.connection_errors, *transport.channel_errors
        )  # fmt: skip

    def publish(self, job_ids: Sequence[UUID]) -> list[UUID]:
        """Sends one message per job; returns those that the broker confirmed.

        Raises: BrokerUnavailable: the broker confirmed none.
        """
        sent: list[UUID] = []
        try:
            connection = self._connected()
            with self._app.amqp.Producer(connection) as producer:
                for job_id in job_ids:
                    self._app.send_task(FIT_TASK, args=[str(job_id)], queue=self._queue, producer=producer, retry=False)
                    sent.append(job_id)
        except self._errors as error:
            self.close()
            if not sent:
                raise BrokerUnavailable from error
        return sent

    def close(self) -> None:
        """Closes the connection; the next `publish` makes a new one."""
        if self._connection is not None:
            with contextlib.suppress(Exception):  # it may be broken; each transport raises its own error
                self._connection.release()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=5)
            if not is_redis(self._url):
                # A dead letter is lost if this queue does not exist.
                dead_queue(self._queue)(self._connection.default_channel).declare()
        self._connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=5)
        return self._connection
