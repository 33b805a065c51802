"""Prometheus metrics of one API process, in their own registry and on their own port.

Generation metrics bear vLLM's names behind our prefix (`alignez:time_to_first_token_seconds`, …), so that dashboards
made for vLLM need only the prefix changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:  # torch stays out of processes without a model
    from alignez_core.engines.slots.scheduler import EngineLoad
    from alignez_core.engines.vllm.plans.slots import SlotCounts

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_LONG_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


class Metrics:
    """All collectors of one process. Label values are bounded: routes, not paths; never a tenant or a profile."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._engine: EngineCollector | None = None
        r = self.registry
        self.requests = Counter(
            "alignez_http_requests", "HTTP requests by route and status.", ["method", "route", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "alignez_http_request_duration_seconds", "Time to the last byte.", ["method", "route"], registry=r,
            buckets=_FAST_S,
        )  # fmt: skip
        self.first_token = Histogram(
            "alignez:time_to_first_token_seconds", "From the request's arrival to its first token.", registry=r,
            buckets=_FAST_S,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "alignez:request_queue_time_seconds", "From the engine's queue into its batch, where the engine says it.",
            registry=r, buckets=_FAST_S,
        )  # fmt: skip
        self.inter_token = Histogram(
            "alignez:inter_token_latency_seconds", "Mean time between the tokens of one answer.", registry=r,
            buckets=_FAST_S,
        )  # fmt: skip
        self.end_to_end = Histogram(
            "alignez:e2e_request_latency_seconds", "From arrival to the last token.", registry=r, buckets=_LONG_S
        )
        self.running = Gauge("alignez:num_requests_running", "Answers that are being generated.", registry=r)
        self.waiting = Gauge("alignez:num_requests_waiting", "Answers that wait for their first token.", registry=r)
        self.prompt_tokens = Counter("alignez:prompt_tokens", "Prompt tokens read.", registry=r)
        self.generation_tokens = Counter("alignez:generation_tokens", "Tokens generated.", registry=r)
        self.answer_tokens = Histogram(
            "alignez:request_generation_tokens", "Tokens per answer.", registry=r, buckets=_TOKENS
        )
        self.finished = Counter(
            "alignez:request_success", "Answers by how they ended.", ["finished_reason"], registry=r
        )
        self.edits = Counter(
            "alignez_edits",
            "Answers by what they ran with: none, prefix, global or conditional edit.",
            ["kind"],
            registry=r,
        )
        self.personalise_seconds = Histogram(
            "alignez_personalise_seconds", "From a profile's name to its edit: database, embedding, directions.",
            registry=r, buckets=_FAST_S,
        )  # fmt: skip
        self.lookup_seconds = Histogram(
            "alignez_lookup_seconds", "Nearest fit queries and their directions, for a sample-conditional request.",
            registry=r, buckets=_FAST_S,
        )  # fmt: skip
        self.edit_ratio = Histogram(
            "alignez_edit_ratio", "How far sample-conditional edits move the model: ‖y − x‖ / ‖x‖ at the query's end.",
            registry=r, buckets=_RATIOS,
        )  # fmt: skip
        self.plan_cache = Counter("alignez_plan_cache", "Look-ups of compiled edits.", ["outcome"], registry=r)
        self.auth_cache = Counter("alignez_auth_cache", "Look-ups of API keys.", ["outcome"], registry=r)
        self.engine_ready = Gauge("alignez_engine_ready", "1 when the model is loaded.", registry=r)

    def watch(self, engine: object) -> None:
        """Exports this engine's metrics, in place of the previous one's."""
        if self._engine is not None:
            self.registry.unregister(self._engine)
        self._engine = EngineCollector(engine)
        self.registry.register(self._engine)


@runtime_checkable
class Loaded(Protocol):
    """An engine that says how busy it is."""

    @property
    def load_now(self) -> EngineLoad: ...


@runtime_checkable
class Slotted(Protocol):
    """An engine that keeps plans in a fixed number of slots."""

    @property
    def slot_counts(self) -> SlotCounts: ...


class EngineCollector(Collector):
    """Reads the engine at each scrape; metrics that it lacks are omitted."""

    def __init__(self, engine: object) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Describes nothing, because that would need the engine."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        if isinstance(engine, Loaded):
            load = engine.load_now
            yield GaugeMetricFamily("alignez_engine_running", "Running requests.", load.running)
            yield GaugeMetricFamily("alignez_engine_waiting", "Waiting requests.", load.waiting)
            yield GaugeMetricFamily("alignez_engine_max_running", "Capacity of the batch in requests.", load.max_slots)
        if isinstance(engine, Slotted):
            slots = engine.slot_counts
            yield GaugeMetricFamily("alignez_plan_slots_live", "Slots whose plan is in use.", slots.live)
            yield GaugeMetricFamily("alignez_plan_slots_waiting", "Requests that wait for a slot.", slots.waiting)
            yield CounterMetricFamily("alignez_plan_slot_hits", "Requests whose plan was in a slot.", slots.hits)
            yield CounterMetricFamily("alignez_plan_slot_loads", "Plans written into a slot.", slots.loads)
            yield CounterMetricFamily("alignez_plan_slot_evictions", "Plans evicted from their slot.", slots.evictions)
