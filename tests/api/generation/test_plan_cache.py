"""The cache of versions and edits is bounded by number and by bytes, and evicts the least recently used values."""

from __future__ import annotations

import threading

import pytest

from api.generation.plans import BoundedCache


def filled(size: int, max_bytes: int, *values: str) -> BoundedCache[str, str]:
    """A cache whose values are their own keys, and as many bytes as they have letters."""
    cache: BoundedCache[str, str] = BoundedCache(size, max_bytes, len)
    for value in values:
        cache.put(value, value)
    return cache


def kept(cache: BoundedCache[str, str], *keys: str) -> list[str]:
    return [key for key in keys if cache.get(key) is not None]


@pytest.mark.parametrize(
    ("size", "max_bytes", "left"),
    [(9, 9, ["a", "bb", "ccc"]), (2, 9, ["bb", "ccc"]), (9, 5, ["bb", "ccc"]), (9, 4, ["ccc"]), (1, 9, ["ccc"])],
)
def test_the_oldest_values_go_beyond_either_bound(size: int, max_bytes: int, left: list[str]) -> None:
    assert kept(filled(size, max_bytes, "a", "bb", "ccc"), "a", "bb", "ccc") == left


def test_a_value_that_was_read_stays_longer() -> None:
    cache = filled(2, 9, "a", "b")
    assert cache.get("a") == "a"
    cache.put("c", "c")
    assert kept(cache, "a", "b", "c") == ["a", "c"]


def test_a_value_beyond_the_bytes_is_kept_alone() -> None:
    cache = filled(9, 4, "a", "bb", "too large")
    assert kept(cache, "a", "bb", "too large") == ["too large"]
    cache.put("a", "a")
    assert kept(cache, "a", "too large") == ["a"]


def test_a_replaced_value_counts_once() -> None:
    cache: BoundedCache[str, str] = BoundedCache(9, 5, len)
    cache.put("other", "x")
    for value in ("aaaa", "bb", "cccc"):
        cache.put("key", value)
    assert kept(cache, "other", "key") == ["other", "key"]
    assert cache.get("key") == "cccc"


def test_values_without_bytes_are_bounded_by_number() -> None:
    cache: BoundedCache[int, str] = BoundedCache(3, 5, len)
    for key in range(10):
        cache.put(key, "")
    assert [key for key in range(10) if cache.get(key) is not None] == [7, 8, 9]


def test_threads_share_it() -> None:
    cache: BoundedCache[int, str] = BoundedCache(8, 40, len)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(5000):
                key = (i * seed) % 23
                if cache.get(key) not in (None, "x" * (key % 7)):
                    raise AssertionError(f"another key's value under {key}")
                cache.put(key, "x" * (key % 7))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
