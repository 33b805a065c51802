"""Messages that RabbitMQ took out of the fit queue, because no worker could do anything with them.

There are two kinds: those that a worker rejected (a task it does not know, as after a rollback to an older release) and
those that were delivered too often (each delivery killed its worker). Nothing depends on them: the job's row is the
truth, and the relay's sweep sends a job that is queued again. They are kept so that somebody can see what happened.

Redis has no such thing: what a worker rejects is gone there, and the sweep alone mends it.
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

from profiles.delivery.celery_queue import FIT_QUEUE, dead_queue, fit_queue, is_redis
from profiles.errors import BrokerUnavailable


@dataclass(frozen=True)
class DeadLetter:
    """One message.

    Args:
        task: Celery's name of the task. job: id of the job, if it is one of ours.
        reason: "rejected" or "delivery_limit". died_at: when, UTC, to the second.
    """

    task: str
    job: str | None
    reason: str
    died_at: datetime | None


class DeadLetters:
    """The dead letters of one fit queue. Each method opens a connection of its own.

    Raises: BrokerUnavailable. Every method of a Redis broker finds nothing.
    """

    def __init__(self, broker_url: str, *, queue: str = FIT_QUEUE, task_time_limit_s: int = 6 * 3600) -> None:
        self._url = broker_url
        self._queue = queue
        self._time_limit_s = task_time_limit_s

    @property
    def are_kept(self) -> bool:
        """Whether this broker keeps any."""
        return not is_redis(self._url)

    def look(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest ones; they stay where they are."""
        with self._messages(limit) as (messages, _):
            return [_letter(message) for message in messages]  # not acknowledged: they go back with the connection

    def replay(self, limit: int = 100) -> list[DeadLetter]:
        """Sends the oldest ones to the workers again. Killed in between, it may send one twice, which is harmless."""
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
        """Removes the oldest ones; returns how many."""
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
    """The first argument of Celery's message protocol 2: a body of [args, kwargs, embed]."""
    try:
        return str(json.loads(message.body)[0][0])
    except (ValueError, LookupError, TypeError):
        return None
