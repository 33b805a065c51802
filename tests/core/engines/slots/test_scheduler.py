"""Who is let into the running batch, and when: turns of the groups, long prompts in pieces, room by tokens.

The engine's thread is held at the runner, so every queue is complete before the first of it is served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from torch import Tensor

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.common.streams import QueuedStream
from alignez_core.engines.slots import rows as engine_rows
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import EngineOverloaded, InvalidInput, RequestTooLarge
from tests.core.engines.contract import wait_until
from tests.core.engines.slots.watched import Watched, watched_engine
from tests.core.engines.tiny_models import tiny_engine, token_ids


def ask(marker: int, group: str | None, *, prompt: int = 3, new: int = 1) -> GenerationRequest:
    """A greedy request of `prompt` tokens that can be told by its first one."""
    return GenerationRequest([marker, *range(5, 4 + prompt)], new, 0, ignore_eos=True, group=group)


@contextmanager
def held(engine: TransformersEngine, watched: Watched) -> Iterator[list[int]]:
    """Holds the engine's thread in the prefill of a first request until the block ends.

    Yields: the first tokens of the prompts that were let in, in order; complete when everything has been answered.
    """
    gate, inside = threading.Event(), threading.Event()
    order: list[int] = []

    def gated(prefill: Callable[..., Tensor], prompts: list[list[int]], edits: list[object]) -> Tensor:
        order.extend(prompt[0] for prompt in prompts)
        inside.set()
        assert gate.wait(20)
        return prefill(prompts, edits)

    watched.on["prefill"] = gated
    first = engine.stream(ask(4, "first"))
    assert inside.wait(20)
    order.clear()
    try:
        yield order
    finally:
        gate.set()
        list(first)


def finish(streams: list[QueuedStream]) -> None:
    for stream in streams:
        assert list(stream)[-1].finish_reason == "length"


def test_one_group_s_many_requests_delay_another_s_first_by_one_turn() -> None:
    with watched_engine(max_slots=1) as (engine, watched):
        with held(engine, watched) as order:
            many = [engine.stream(ask(10 + i, "many")) for i in range(40)]
            few = [engine.stream(ask(100 + i, "few")) for i in range(2)]
            one = engine.stream(ask(200, None))
        finish([*many, *few, one])
        assert order[:6] == [10, 100, 200, 11, 101, 12]
        assert order[5:] == list(range(12, 50))


def test_turns_count_within_one_batch_of_newcomers_too() -> None:
    with watched_engine(max_slots=4) as (engine, watched):
        with held(engine, watched) as order:
            many = [engine.stream(ask(10 + i, "many")) for i in range(6)]
            few = [engine.stream(ask(100 + i, "few")) for i in range(2)]
        finish([*many, *few])
        assert order == [10, 100, 11, 101, 12, 13, 14, 15]


def test_requests_of_one_generate_call_go_in_order() -> None:
    with watched_engine(max_slots=1) as (engine, watched):
        with held(engine, watched) as order:
            requests = [ask(10 + i, None) for i in range(8)]
            done: list[int] = []
            thread = threading.Thread(target=lambda: done.append(len(engine.generate(requests))))
            thread.start()
            wait_until(lambda: engine.load_now.waiting == 8)
        thread.join(20)
        assert done == [8]
        assert order == list(range(10, 18))


def test_a_cancelled_request_gives_its_turn_to_the_next_of_its_group() -> None:
    with watched_engine(max_slots=1) as (engine, watched):
        with held(engine, watched) as order:
            many = [engine.stream(ask(10 + i, "many")) for i in range(3)]
            gone = engine.stream(ask(100, "few"))
            kept = engine.stream(ask(101, "few"))
            alone = engine.stream(ask(200, "gone"))
            gone.close()
            alone.close()
        finish([*many, kept])
        assert order == [10, 101, 11, 12]


def test_a_queue_full_of_one_group_still_takes_one_request_of_another() -> None:
    with watched_engine(max_slots=1, max_waiting=3) as (engine, watched):
        with held(engine, watched) as order:
            many = [engine.stream(ask(10 + i, "many")) for i in range(3)]
            with pytest.raises(EngineOverloaded):
                engine.stream(ask(13, "many"))
            few = engine.stream(ask(100, "few"))
            with pytest.raises(EngineOverloaded):
                engine.stream(ask(101, "few"))
        finish([*many, few])
        assert order == [10, 100, 11, 12]


def test_the_first_chunk_says_how_long_the_row_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(engine_rows, "monotonic", lambda: now)
    with watched_engine(max_slots=2, prefill_piece=8) as (engine, watched):
        at_once = engine.stream(ask(9, None, new=3))
        assert [chunk.queued_s for chunk in at_once] == [0.0, None, None]
        with held(engine, watched):
            first = engine.stream(ask(10, None, new=3))
            now += 5.0
            second = engine.stream(ask(11, None, prompt=20, new=2))  # in pieces
            now += 2.0
        assert [chunk.queued_s for chunk in first] == [7.0, None, None]
        assert [chunk.queued_s for chunk in second] == [2.0, None]


def test_who_asks_has_no_part_in_the_answer() -> None:
    request = replace(ask(9, "a", new=8), temperature=1.0, seed=3)
    other = replace(request, group="b")
    assert request == other
    with tiny_engine() as engine:
        first, second = engine.generate([request, other])
    assert first == second


def held_tokens(watched: Watched, requests: list[GenerationRequest]) -> list[int]:
    """Prompt and new tokens of the live rows together, one entry per step; grows as the engine runs."""
    sizes = {token_ids(each)[0]: len(each.prompt) + each.max_tokens for each in requests}
    sums: list[int] = []

    def counted(decode: Callable[..., Tensor], tokens: list[int]) -> Tensor:
        sums.append(sum(sizes.get(prompt[0], 0) for prompt in watched.runner.prompts))
        return decode(tokens)

    watched.on["decode"] = counted
    return sums


def test_what_does_not_fit_waits_and_holds_up_its_own_group_only() -> None:
    with watched_engine(max_slots=4, max_cache_tokens=40) as (engine, watched):
        requests = [ask(10, "running", new=20), ask(20, "big", prompt=10, new=20), ask(21, "big")]
        requests += [ask(100 + i, "small", new=3) for i in range(4)]
        sums = held_tokens(watched, requests)
        with held(engine, watched) as order:
            streams = [engine.stream(request) for request in requests]
        finish(streams)
        assert order == [10, 100, 101, 102, 103, 20, 21]
        assert max(sums) == 23 + 2 * 6
        assert engine.load_now.running == engine.load_now.waiting == 0


def test_a_big_request_is_not_overtaken_for_ever() -> None:
    with (
        watched_engine(max_slots=4, max_cache_tokens=40) as limited,
        watched_engine(max_slots=4) as free,
    ):
        orders = []
        for own, watched in (limited, free):
            with held(own, watched) as order:
                streams = [own.stream(ask(10, "running", new=20)), own.stream(ask(20, "big", prompt=10, new=26))]
                streams += [own.stream(ask(100 + i, "small")) for i in range(100)]
            finish(streams)
            orders.append(order)
        assert orders[0] == [10, *range(100, 132), 20, *range(132, 200)]
        assert orders[1][:3] == [10, 20, 100]


def test_many_at_once_stay_under_the_limit_and_get_the_answers_they_get_without_it() -> None:
    requests = [ask(10 + i, f"group {i % 3}", prompt=3 + 5 * (i % 4), new=2 + 7 * (i % 3)) for i in range(24)]
    with watched_engine(max_cache_tokens=50) as (engine, watched), tiny_engine() as free:
        sums = held_tokens(watched, requests)
        assert engine.generate(requests) == free.generate(requests)
        assert 40 < max(sums) <= 50


def test_a_request_that_can_never_fit_is_refused_with_both_numbers() -> None:
    with tiny_engine(max_cache_tokens=40) as engine:
        too_large = ask(9, None, prompt=11, new=30)
        for call in (lambda: engine.stream(too_large), lambda: engine.generate([ask(9, None), too_large])):
            with pytest.raises(RequestTooLarge, match=r"41 in all.* 40 tokens") as refused:
                call()
        assert (refused.value.prompt_tokens, refused.value.max_tokens, refused.value.limit) == (11, 30, 40)
        assert len(engine.generate([ask(9, None, prompt=10, new=30)])[0].token_ids) == 30
    with pytest.raises(InvalidInput, match="max_cache_tokens"):
        TransformersEngine.load("nowhere", max_cache_tokens=1)
