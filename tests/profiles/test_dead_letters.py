"""What no worker can do anything with is put aside by RabbitMQ, can be looked at, and goes back when asked to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from profiles.delivery.celery_queue import FIT_TASK, CeleryQueue
from profiles.delivery.dead_letters import DeadLetters
from profiles.errors import BrokerUnavailable
from tests.rabbitmq import RABBITMQ_URL, acknowledge, delete_queue, reject, requeue, require_rabbitmq, take

LIMIT_S = 600


@pytest.fixture
def queue() -> Iterator[str]:
    require_rabbitmq()
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    delete_queue(name)


def letters_of(queue: str) -> DeadLetters:
    return DeadLetters(RABBITMQ_URL, queue=queue, task_time_limit_s=LIMIT_S)


def publish(queue: str, count: int) -> list[str]:
    jobs = [uuid.uuid4() for _ in range(count)]
    publisher = CeleryQueue(RABBITMQ_URL, queue=queue, task_time_limit_s=LIMIT_S)
    try:
        assert publisher.publish(jobs) == jobs
    finally:
        publisher.close()
    return [str(job) for job in jobs]


def until_there(letters: DeadLetters, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(letters.look()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.rabbitmq
def test_a_rejected_message_is_put_aside_and_looking_leaves_it_there(queue: str) -> None:
    jobs = publish(queue, 2)
    take(queue, reject, 2, task_time_limit_s=LIMIT_S)
    letters = letters_of(queue)
    until_there(letters, 2)
    for _ in range(25):  # more often than a message may be delivered
        found = letters.look()
    assert [one.job for one in found] == jobs
    assert {(one.task, one.reason) for one in found} == {(FIT_TASK, "rejected")}
    assert all(one.died_at is not None and abs(one.died_at.timestamp() - time.time()) < 120 for one in found)
    assert len(letters.look(limit=1)) == 1


@pytest.mark.rabbitmq
def test_replayed_messages_are_whole_and_gone_from_where_they_were(queue: str) -> None:
    jobs = publish(queue, 3)
    take(queue, reject, 3, task_time_limit_s=LIMIT_S)
    letters = letters_of(queue)
    until_there(letters, 3)
    assert [one.job for one in letters.replay(limit=2)] == jobs[:2]
    assert [one.job for one in letters.look()] == jobs[2:]
    bodies = take(queue, acknowledge, 2, task_time_limit_s=LIMIT_S)
    assert all(job in body for job, body in zip(jobs[:2], bodies, strict=True))


@pytest.mark.rabbitmq
def test_a_message_that_came_back_too_often_is_put_aside(queue: str) -> None:
    jobs = publish(queue, 1)
    letters = letters_of(queue)
    take(queue, requeue, 21, task_time_limit_s=LIMIT_S)
    until_there(letters, 1)
    (found,) = letters.look()
    assert (found.job, found.reason) == (jobs[0], "delivery_limit")


@pytest.mark.rabbitmq
def test_dropped_messages_are_gone(queue: str) -> None:
    publish(queue, 2)
    take(queue, reject, 2, task_time_limit_s=LIMIT_S)
    letters = letters_of(queue)
    until_there(letters, 2)
    assert letters.drop(limit=1) == 1
    assert letters.drop() == 1
    assert letters.look() == []


@pytest.mark.slow
def test_a_broker_that_is_away_is_said() -> None:
    with pytest.raises(BrokerUnavailable):
        DeadLetters("amqp://guest:guest@127.0.0.1:1//").look()


def test_redis_keeps_none() -> None:
    letters = DeadLetters("redis://127.0.0.1:1/0")
    assert not letters.are_kept
    assert (letters.look(), letters.replay(), letters.drop()) == ([], [], 0)
