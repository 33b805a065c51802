"""The channel between the two halves of an engine: in order, and an end of either side is seen by both."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from alignez_core.engines.process.channel import Channel

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    channels = Channel(ours), Channel(theirs)
    yield channels
    for channel in channels:
        channel.close()


def all_of(channel: Channel) -> list[Any]:
    messages: list[Any] = []
    while (block := channel.receive()) is not None:
        messages += block
    return messages


def test_what_was_sent_before_the_end_arrives_in_order() -> None:
    ours, theirs = map(Channel, socket.socketpair())
    for i in range(100):
        ours.send(i)
    ours.close()
    assert all_of(theirs) == list(range(100))
    theirs.close()


def test_a_message_that_comes_after_the_hang_up_goes_nowhere_and_holds_nobody_up() -> None:
    ours, theirs = map(Channel, socket.socketpair())
    ours.send(b"x" * 4_000_000)  # more than a socket takes, so that the sender is in the middle of it
    closing = threading.Thread(target=ours.close)
    closing.start()
    time.sleep(0.1)
    ours.send("late")
    assert all_of(theirs) == [b"x" * 4_000_000]
    closing.join(10)
    assert not closing.is_alive()
    theirs.close()


def test_a_message_that_cannot_be_written_is_an_end_that_both_sides_see(ends: Ends) -> None:
    ours, theirs = ends
    ours.send(lambda: 0)
    assert theirs.receive() is None
    assert ours.receive() is None
    ours.send("later messages go nowhere")
