"""Whose turn it is when many groups wait for few places."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from alignez_core.engines.common.admission import FairQueue


@dataclass(frozen=True)
class Waiting:
    group: str | None
    prompt_tokens: int = 1
    cache_tokens: int = 1
    cancelled: bool = False


def let_in(queue: FairQueue[Waiting], running: Counter[str | None], places: int) -> str:
    """The groups that get so many places, in order."""
    given = ""
    for _ in range(places):
        row = queue.first(running)
        assert row is not None
        queue.remove(row)
        running[row.group] += 1
        given += str(row.group)
    return given


def test_a_newcomer_has_the_next_free_place_when_another_holds_all() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    running: Counter[str | None] = Counter()
    queue.add([Waiting("a")] * 640)
    assert let_in(queue, running, 64) == "a" * 64
    queue.add([Waiting("b")] * 3)
    running["a"] -= 1
    assert let_in(queue, running, 1) == "b"


def test_who_has_fewer_places_is_served_until_they_are_even() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    running: Counter[str | None] = Counter(["a"] * 4)
    queue.add([Waiting("a")] * 4 + [Waiting("b")] * 6)
    assert let_in(queue, running, 4) == "bbbb"
    assert let_in(queue, running, 4) == "abab"


def test_among_equals_a_group_that_always_has_few_waiting_does_not_pass_others_by() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    running: Counter[str | None] = Counter()
    queue.add([Waiting("a")] * 3)
    order = ""
    for _ in range(3):
        queue.add([Waiting("b")])
        order += let_in(queue, running, 1)
        running.clear()  # each is done at once
    assert order == "aba"
