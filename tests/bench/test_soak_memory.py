"""The soak's judge of growth."""

from __future__ import annotations

import random
import subprocess

import psutil
import pytest

from bench.soak_memory import Series, Usage, Watch, growth, handle_growth, memory_growth, usage_of
from bench.soak_report import findings
from tests.bench.test_soak_answers import soaked


def series(values: list[float], files: int = 10, more_files: int = 0) -> Series:
    made = Series()
    for i, value in enumerate(values):
        made.times.append(i * 5.0)
        made.usages.append(Usage(value + 80, value + 20, value, files + more_files * i // len(values), 20))
    return made


def test_a_growing_series_fails_and_its_slope_is_told() -> None:
    grown, held = memory_growth("api", series([400 + 0.15 * i for i in range(360)]))  # 30 minutes
    assert not held
    assert [grown.per_hour, grown.late_per_hour] == pytest.approx([0.15 * 720] * 2)


def test_a_warm_up_and_noise_do_not_fail() -> None:
    rng = random.Random(1)
    values = [400 - 100 * max(0.0, 1 - i / 60) + rng.uniform(-5, 5) for i in range(360)]
    grown, held = memory_growth("api", series(values))
    assert held
    assert abs(grown.share) < 0.02


def test_a_few_mebibytes_of_a_small_process_are_noise() -> None:
    assert memory_growth("relay", series([20 + i / 100 for i in range(360)]))[1]


def test_postgres_may_fill_its_buffers_but_not_grow_without_end() -> None:
    assert memory_growth("postgres", series([100 + i / 20 for i in range(360)]))[1]
    assert not memory_growth("postgres", series([100 + i / 2 for i in range(360)]))[1]


def test_open_files_that_add_up_fail() -> None:
    assert handle_growth("api", series([1.0] * 100)) == (0, True)
    assert not handle_growth("api", series([1.0] * 100, more_files=60))[1]
    assert handle_growth("postgres", series([1.0] * 100, more_files=60))[1], "sessions open the tables' files"


def test_too_few_samples_are_not_judged() -> None:
    with pytest.raises(ValueError, match="too few"):
        growth([0, 1, 2], [1, 1, 1])


def test_a_sample_has_this_process_and_a_replaced_one_is_noticed() -> None:
    found = usage_of(psutil.Process())
    assert found is not None
    assert 0 < found.private <= found.rss
    assert found.files > 2
    watch = Watch()
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        watch.sample(0.0, {"api": sleepers[0].pid, "broker": None})
        watch.sample(1.0, {"api": sleepers[0].pid})
        assert set(watch.series) == {"api"}
        assert watch.restarts == 0
        watch.sample(2.0, {"api": sleepers[1].pid})
        assert watch.restarts == 1
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_a_small_leak_of_a_big_process_shows_in_the_second_half_of_a_long_run() -> None:
    outcome = soaked(tamper=False)
    outcome.watch.series["api"] = series([400 + 0.04 * i for i in range(360)])  # 29 MiB an hour
    assert findings(outcome).failed == ["api: straight line through the second half"]
    outcome.watch.series["api"] = series([400 + 20 * (1 - 0.98**i) for i in range(360)])
    assert findings(outcome).failed == []
