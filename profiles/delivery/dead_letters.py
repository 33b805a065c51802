"""Dead letters: messages that RabbitMQ took out of the fit queue because no worker could handle them.

There are two kinds: messages that a worker rejected (an unknown task, as after a rollback to an older release) and
messages that were delivered too often (each delivery killed its worker). No job depends on them, because the job's row
is the truth and the relay's sweep sends a queued job again. They are kept for inspection.

Redis keeps no dead letters: a rejected message is lost, and the sweep sends the job again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kombu.connection import Connection
from kombu.exceptions import KombuError
from kombu.message import Message

from profiles.delivery.broker import is_redis
from profiles.delivery.celery_queue import FIT_QUEUE, dead_queue, fit_queue
from profiles.errors import BrokerUnavailable


@dataclass(frozen=True)
class DeadLetter:
    """A message in the queue of dead letters.

    Args:
        task: Celery's name of the task. job: id of the job, if the task has one.
        reason: "rejected" or "delivery_limit". died_at: time in UTC, in seconds.
    """

    task: str
    job: str | None
    reason: str
    died_at: datetime | None


class DeadLetters:
    """The dead letters of one queue; a Redis broker has none. Each method opens its own connection.

    Raises: BrokerUnavailable.
    """

    def __init__(self, broker_url: str, *, queue: str = FIT_QUEUE, task_time_limit_s: int = 6 * 3600) -> None:
        self._url = broker_url
        self._queue = queue
        self._time_limit_s = task_time_limit_s

    @property
    def are_kept(self) -> bool:
        """True when the broker keeps dead letters."""
        return not is_redis(self._url)

    def look(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest messages, which remain in the queue."""
        with self._messages(limit) as (messages, _):
            # Not acknowledged, so they return to the queue when the connection closes.
            return [_letter(message) for message in messages]

    def replay(self, limit: int = 100) -> list[DeadLetter]:
        """Sends the oldest messages to the workers again.

        A process that is killed meanwhile may send a message twice, which is harmless.
        """
        with self._messages(limit) as (messages, connection):
            target = fit_queue(self._queue, self._url, self._time_limit_s)
            with connection.Producer() as producer:
                for message in messages:
                    headers = {k: v for k, v in message.headers.items() if not k.startswith("x-")}
                    producer.publish(
                        message.body,
                        routing_key=self._queue,
                        declare=[target],
                        headers=headers,
                        content_type=message.content_type,
                        content_encoding=message.content_encoding,
                        delivery_mode=2,
                        **{k: v for k, v in message.properties.items() if k in ("correlation_id", "reply_to")},
                    )
                    message.ack()
            return [_letter(message) for message in messages]

    def drop(self, limit: int = 100) -> int:
        """Removes the oldest messages. Returns their number."""
        with self._messages(limit) as (messages, _):
            for message in messages:
                message.ack()
            return len(messages)

    @contextmanager
    def _messages(self, limit: int) -> Iterator[tuple[list[Message], Connection]]:
        if not self.are_kept:
            yield [], Connection()
            return
        connection = Connection(self._url, connect_timeout=5, transport_options={"confirm_publish": True})
        errors = (OSError, KombuError, *connection.connection_errors, *connection.channel_errors)
        try:
            with connection:
                queue = dead_queue(self._queue)(connection.default_channel)
                queue.declare()
                messages: list[Message] = []
                while len(messages) < limit and (message := queue.get(no_ack=False)) is not None:
                    messages.append(message)
                yield messages, connection
        except errors as error:
            raise BrokerUnavailable from error


def _letter(message: Message) -> DeadLetter:
    deaths: list[dict[str, Any]] = message.headers.get("x-death") or [{}]
    time = deaths[0].get("time")
    if isinstance(time, datetime):
        time = time.replace(tzinfo=UTC)
    return DeadLetter(
        str(message.headers.get("task", "unknown")),
        _job(message),
        str(deaths[0].get("reason", "unknown")),
        time if isinstance(time, datetime) else None,
    )


def _job(message: Message) -> str | None:
    """The first argument of the task. The body in Celery's message protocol 2 is [args, kwargs, embed]."""
    try:
        return str(json.loads(message.body)[0][0])
    except (ValueError, LookupError, TypeError):
        return None
