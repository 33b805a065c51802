"""Engines are asked at each scrape, and only for what they can say; answers tell how long they waited."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from alignez_core.engines.slots.scheduler import EngineLoad
from alignez_core.engines.vllm.plans.slots import SlotCounts
from api.metrics import Metrics
from tests.api.conftest import Tenant


class Busy:
    """An engine that says how busy it is."""

    waiting = 3

    @property
    def load_now(self) -> EngineLoad:
        return EngineLoad(running=2, waiting=self.waiting, max_slots=4, generated_tokens=0, steps=0)


class Slotted(Busy):
    @property
    def slot_counts(self) -> SlotCounts:
        return SlotCounts(hits=5, loads=4, evictions=1, waiting=0, live=3)


def test_the_load_is_the_one_of_the_moment() -> None:
    metrics, engine = Metrics(), Busy()
    metrics.watch(engine)
    value = metrics.registry.get_sample_value
    assert (value("alignez_engine_running"), value("alignez_engine_waiting")) == (2, 3)
    assert value("alignez_engine_max_running") == 4
    engine.waiting = 7
    assert value("alignez_engine_waiting") == 7
    assert value("alignez_plan_slots_live") is None


def test_an_engine_with_slots_tells_how_they_fare() -> None:
    metrics = Metrics()
    metrics.watch(Slotted())
    value = metrics.registry.get_sample_value
    assert value("alignez_plan_slot_hits_total") == 5
    assert value("alignez_plan_slot_loads_total") == 4
    assert value("alignez_plan_slot_evictions_total") == 1
    assert value("alignez_plan_slots_live") == 3


def test_a_new_engine_takes_the_place_of_the_one_before() -> None:
    metrics = Metrics()
    metrics.watch(Slotted())
    metrics.watch(Busy())
    assert metrics.registry.get_sample_value("alignez_engine_running") == 2
    assert metrics.registry.get_sample_value("alignez_plan_slots_live") is None


def test_an_engine_that_says_nothing_has_no_metrics() -> None:
    metrics = Metrics()
    metrics.watch(object())
    assert metrics.registry.get_sample_value("alignez_engine_running") is None


@pytest.mark.parametrize("stream", [False, True])
def test_each_row_tells_once_how_long_it_waited_in_the_engine(tenant: Tenant, app: FastAPI, stream: bool) -> None:
    value = app.state.services.metrics.registry.get_sample_value
    before = value("alignez:request_queue_time_seconds_count")
    assert tenant.chat(max_tokens=3, n=2, stream=stream).status_code == 200
    assert value("alignez:request_queue_time_seconds_count") == before + 2
