"""Usage counts the tokens of every attempt at a job, however it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import update

from alignez_core.engines.base import Completion, GenerationRequest
from alignez_core.errors import JudgeUnavailable, OutOfMemory
from profiles.models import Job
from profiles.service import cancel_job, usage_since
from tests.worker.conftest import Bench, loaded
from tests.worker.fit_cases import SPEC, FakeJudge, Killed, WatchedEngine, let_the_lease_run_out, version_of
from worker.metrics import WorkerMetrics


class CountingEngine(WatchedEngine):
    """Counts the tokens that it made."""

    tokens = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        made = super().generate(requests)
        self.tokens += sum(len(each.token_ids) for each in made)
        return made


def fit_tokens(bench: Bench) -> int:
    with bench.open() as uow:
        return sum(row.fit_tokens for row in usage_since(uow, bench.caller.tenant_id, None).rows)


def due_now(bench: Bench) -> None:
    with bench.open() as uow:
        uow.session.execute(update(Job).values(run_after=None))


def raising(error: BaseException, at: int = 4) -> Any:
    def before(call: int) -> None:
        if call == at:
            raise error

    return before


def test_an_attempt_that_is_tried_again_is_counted(bench: Bench) -> None:
    request = bench.request(spec=SPEC)
    metrics = WorkerMetrics()
    first, second = CountingEngine(raising(OutOfMemory("no memory"))), CountingEngine()
    assert bench.runner(loaded(first), metrics=metrics).run(request.job.id) == "retry"
    assert fit_tokens(bench) == first.tokens > 0
    due_now(bench)
    assert bench.runner(loaded(second), metrics=metrics).run(request.job.id) == "succeeded"
    assert fit_tokens(bench) == first.tokens + second.tokens
    assert metrics.registry.get_sample_value("alignez_fit_tokens_total") == fit_tokens(bench)
    last = (version_of(bench, request).diagnostics or {})["last_attempt"]["tokens_generated"]
    assert 0 < last <= second.tokens  # timing the arms makes tokens, but no texts


@pytest.mark.parametrize("outcome", ["handed_back", "cancelled", "failed"])
def test_an_attempt_that_stops_between_two_batches_is_counted(bench: Bench, outcome: str) -> None:
    request = bench.request(spec=SPEC)
    stopped: list[bool] = []

    def before(call: int) -> None:
        if call == 4 and outcome == "failed":
            raise RuntimeError("a bug")
        if call == 4 and outcome == "cancelled":
            with bench.open() as uow:
                cancel_job(uow, bench.caller, request.job.id)
        elif call == 4:
            stopped.append(True)

    engine = CountingEngine(before)
    assert bench.runner(loaded(engine), stopping=lambda: bool(stopped)).run(request.job.id) == outcome
    assert fit_tokens(bench) == engine.tokens > 0


def test_a_killed_workers_finished_batches_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request = bench.request(spec=SPEC)
    engine = CountingEngine(raising(Killed()))
    monkeypatch.setattr("worker.job.ClaimedJob.count_rest", lambda job: None)  # the process is gone
    with pytest.raises(Killed):
        bench.runner(loaded(engine)).run(request.job.id)
    monkeypatch.undo()
    assert fit_tokens(bench) == engine.tokens > 0
    let_the_lease_run_out(bench, request.job.id)
    due_now(bench)
    second = CountingEngine()
    assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
    assert fit_tokens(bench) == engine.tokens + second.tokens


def test_what_a_judge_that_went_away_has_left_is_counted(bench: Bench) -> None:
    """The proof begins anew with another judge."""
    request = bench.request(spec=SPEC)
    assert bench.runner(loaded(CountingEngine())).run(request.job.id) == "succeeded"
    before = fit_tokens(bench)

    def fail(call: int) -> None:
        if call == 1:
            raise JudgeUnavailable("away")

    job = bench.evaluation(request, judge="openai", judge_fallback=True, held_out_queries=7, seed=5)
    engine = CountingEngine()
    assert bench.runner(loaded(engine), make_judge=lambda name: FakeJudge(fail)).run(job.id) == "succeeded"
    assert fit_tokens(bench) - before == engine.tokens > 0
