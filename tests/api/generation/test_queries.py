"""Queries of many requests share forward passes, and nobody pays for it with more than their own wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.errors import ContextTooLong
from api.generation.queries import MAX_QUERIES, SharedPasses


class PassEngine(FakeEngine):
    """Calls `during` with the number of the pass that runs, and keeps every pass's texts."""

    def __init__(self, during: Callable[[int], None] = lambda number: None) -> None:
        super().__init__()
        self.during = during
        self.passes: list[list[Any]] = []

    def represent(self, texts: Sequence[Any], positions: Any = "last") -> Tensor:
        self.passes.append(list(texts))
        self.during(len(self.passes))
        return super().represent(texts, positions)


def wait_for_waiting(passes: SharedPasses, count: int) -> None:
    """Returns when so many callers wait for the next pass."""
    for _ in range(5000):
        if passes.waiting == count:
            return
        threading.Event().wait(0.001)
    raise AssertionError(f"never {count} waiting")


def test_the_first_caller_leaves_after_its_own_pass_however_many_keep_coming() -> None:
    returned = threading.Event()
    late: list[threading.Thread] = []

    def arrive(number: int) -> None:
        if number > 1:
            assert returned.wait(10), "the first caller is kept at work for others"
        if number <= 3:
            late.append(threading.Thread(target=passes.represent, args=(f"late {number}",)))
            late[-1].start()
            wait_for_waiting(passes, 1)

    engine = PassEngine(arrive)
    passes = SharedPasses(engine)
    passes.represent("first")
    returned.set()
    for thread in late:
        thread.join(10)
        assert not thread.is_alive()
    assert engine.passes == [["first"], ["late 1"], ["late 2"], ["late 3"]]


def test_everybody_who_came_during_a_pass_shares_the_next_up_to_its_size() -> None:
    company = [f"query {i}" for i in range(MAX_QUERIES + 3)]

    def hold(number: int) -> None:
        if number == 1:
            futures.extend(pool.submit(passes.represent, text) for text in company)
            wait_for_waiting(passes, len(company))

    engine = PassEngine(hold)
    passes = SharedPasses(engine)
    futures: list[Any] = []
    with ThreadPoolExecutor(len(company)) as pool:
        passes.represent("first")
        found = [future.result(10) for future in futures]
    assert [len(texts) for texts in engine.passes] == [1, MAX_QUERIES, 3]
    for text, row in zip(company, found, strict=True):
        torch.testing.assert_close(row, FakeEngine().represent([text]))


def test_a_bad_query_fails_only_itself() -> None:
    texts = ["good one", "word " * 600, "good two"]

    def hold(number: int) -> None:
        if number == 1:
            futures.extend(pool.submit(passes.represent, text) for text in texts)
            wait_for_waiting(passes, len(texts))

    passes = SharedPasses(PassEngine(hold))
    futures: list[Any] = []
    with ThreadPoolExecutor(len(texts)) as pool:
        passes.represent("first")
        with pytest.raises(ContextTooLong):
            futures[1].result(10)
        for i in (0, 2):
            torch.testing.assert_close(futures[i].result(10), FakeEngine().represent([texts[i]]))
