"""Every ending of a fit job has its code, and what can be tried again is."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from sqlalchemy import update

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.errors import EngineCannotWalk, EngineClosed, OutOfMemory
from profiles.errors import DatabaseUnavailable
from profiles.fitting import claims as jobs
from profiles.fitting import content
from profiles.models import Job, JobStatus, ProfileVersion, VersionState
from tests.factories import QUERIES
from tests.worker.conftest import Bench, loaded
from tests.worker.fit_cases import (
    ALIGNEZ,
    SMALL,
    SPEC,
    FlatEngine,
    WatchedEngine,
    job_of,
    let_the_lease_run_out,
    version_of,
)
from worker.metrics import WorkerMetrics


class StiffEngine(WatchedEngine):
    """Cannot halt between blocks, like vLLM's."""

    def walk(self, requests: Any, copies: int = 1) -> NoReturn:
        raise EngineCannotWalk("VLLMEngine")


class TestFailures:
    def ended(self, bench: Bench, engine: Any, spec: dict[str, Any] | None = None, **options: Any) -> Job:
        """The job after one run that failed for good."""
        request = bench.request(spec=spec or SPEC)
        assert bench.runner(engine, **options).run(request.job.id) == "failed"
        job = job_of(bench, request.job.id)
        assert job.status is JobStatus.FAILED
        assert version_of(bench, request).state is VersionState.FAILED
        return job

    def test_no_direction_to_be_found(self, bench: Bench) -> None:
        assert self.ended(bench, loaded(FlatEngine()), ALIGNEZ).error_code == "degenerate_directions"

    def test_no_answer_holds_any_text(self, bench: Bench) -> None:
        job = self.ended(bench, loaded(FakeEngine(reply=lambda request: "")))
        assert job.error_code == "degenerate_directions"

    def test_a_prompt_longer_than_the_context(self, bench: Bench) -> None:
        job = self.ended(bench, loaded(FakeEngine(context_length=16)))
        assert job.error_code == "degenerate_directions"
        assert "leaves room for 8 new tokens" in (job.error_message or "")

    def test_more_neighbours_than_the_bank_has_queries(self, bench: Bench) -> None:
        spec = {"persona": SPEC["persona"], "fit": {**ALIGNEZ["fit"], "neighbors": 4}}
        job = self.ended(bench, loaded(bank=("One?", "Two?")), spec)
        assert job.error_code == "too_few_samples"
        assert "neighbors=4 is more than the 1" in (job.error_message or "")

    def test_a_model_that_invents_too_few_queries(self, bench: Bench) -> None:
        spec = {"queries": QUERIES[:1], "fit": {"method": "alignez", "own_queries": 8, **SMALL}}
        engine = WatchedEngine(reply=lambda request: "always the same question?\n")
        job = self.ended(bench, loaded(engine), spec)
        assert job.error_code == "too_few_samples"

    def test_an_engine_that_cannot_halt_says_which_one_can_before_it_generates(self, bench: Bench) -> None:
        engine = StiffEngine()
        for method in ("auto", "distill", "caa"):
            job = self.ended(bench, loaded(engine), {**SPEC, "fit": {"method": method, **SMALL}})
            assert job.error_code == "engine_cannot_fit"
            assert "ALIGNEZ_WORKER_ENGINE=transformers" in (job.error_message or "")
        assert engine.batches == []

    @pytest.mark.parametrize("method", ["alignez", "prompt", "urial"])
    def test_the_other_methods_need_no_halt(self, bench: Bench, method: str) -> None:
        request = bench.request(spec={**SPEC, "fit": {"method": method, "neighbors": 3, **SMALL}})
        assert bench.runner(loaded(StiffEngine())).run(request.job.id) == "succeeded"

    def test_an_unknown_setting(self, bench: Bench) -> None:
        job = self.ended(bench, loaded(), {**SPEC, "fit": {"neighbors": 3, "colour": "blue"}})
        assert job.error_code == "invalid_input"
        assert "colour" in (job.error_message or "")

    def test_a_layer_that_the_workers_model_does_not_have(self, bench: Bench) -> None:
        job = self.ended(bench, loaded(), {**SPEC, "fit": {"neighbors": 3, "layers": [7]}})
        assert job.error_code == "layer_out_of_range"

    def test_an_error_that_nobody_foresaw_tells_no_details(self, bench: Bench) -> None:
        job = self.ended(bench, loaded(FakeEngine(error=RuntimeError("secret path /srv/key"))))
        assert job.error_code == "internal_error"
        assert "secret" not in (job.error_message or "")
        assert "RuntimeError" not in (job.error_message or "")

    def test_a_fit_that_takes_too_long(self, bench: Bench) -> None:
        job = self.ended(bench, loaded(), time_limit_s=0.0)
        assert job.error_code == "time_limit_exceeded"
        assert "ALIGNEZ_WORKER_JOB_TIME_LIMIT_S" in (job.error_message or "")

    def test_a_profile_of_another_model(self, bench: Bench) -> None:
        first = bench.request(spec=SPEC)
        bench.runner().run(first.job.id)
        request = bench.request(spec=SPEC, profile=first.profile.id)
        engine = WatchedEngine(name="another")
        assert bench.runner(loaded(engine)).run(request.job.id) == "failed"
        job = job_of(bench, request.job.id)
        assert job.error_code == "model_mismatch"
        assert "fake" in (job.error_message or "")
        assert "another" in (job.error_message or "")
        assert engine.batches == []

    @pytest.mark.parametrize(
        ("error", "code"),
        [(OutOfMemory("no memory"), "out_of_memory"), (MemoryError(), "out_of_memory"),
         (EngineClosed("closed"), "engine_closed")],
    )  # fmt: skip
    def test_a_passing_error_is_tried_again_and_goes_on_where_it_was(
        self, bench: Bench, error: Exception, code: str
    ) -> None:
        request = bench.request(spec=SPEC)

        def fail_once(call: int) -> None:
            if call == 4:
                raise error

        first, second = WatchedEngine(fail_once), WatchedEngine()
        assert bench.runner(loaded(first)).run(request.job.id) == "retry"
        job = job_of(bench, request.job.id)
        assert (job.status, job.error_code, job.failures) == (JobStatus.QUEUED, code, 1)
        assert bench.runner(loaded(second)).run(request.job.id) == "skipped"  # not before its pause
        with bench.open() as uow:
            uow.session.execute(update(Job).values(run_after=None))
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert set((first.rows + second.rows).values()) == {1}
        assert job_of(bench, request.job.id).error_code is None

    def test_metrics_count_attempts_stages_tokens_and_verdicts(self, bench: Bench) -> None:
        metrics = WorkerMetrics()

        def value(name: str, **labels: str) -> float | None:
            return metrics.registry.get_sample_value(name, labels)

        broken = loaded(FakeEngine(error=OutOfMemory("no memory")))
        assert bench.runner(broken, metrics=metrics).run(bench.request(spec=SPEC).job.id) == "retry"
        assert value("alignez_fit_attempts_total", outcome="retry") == 1
        assert value("alignez_fit_seconds_count") == 0
        request = bench.request(spec=SPEC)
        assert bench.runner(metrics=metrics).run(request.job.id) == "succeeded"
        with bench.open() as uow:
            version = uow.session.get_one(ProfileVersion, request.version.id)
        assert value("alignez_fit_attempts_total", outcome="succeeded") == 1
        assert value("alignez_fit_quality_total", quality=version.quality or "") == 1
        last = (version.diagnostics or {})["last_attempt"]
        assert (value("alignez_fit_tokens_total") or 0) >= last["tokens_generated"]
        assert value("alignez_fit_seconds_count") == 1
        assert last["seconds"]
        assert all(value("alignez_fit_stage_seconds_count", stage=stage) == 1 for stage in last["seconds"])
        assert value("alignez_worker_busy") == 0

    def test_an_error_that_does_not_pass_ends_the_job(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        outcomes = []
        for _ in range(3):
            outcomes.append(bench.runner(loaded(FakeEngine(error=OutOfMemory("no memory")))).run(request.job.id))
            with bench.open() as uow:
                uow.session.execute(update(Job).values(run_after=None))
        assert outcomes == ["retry", "retry", "failed"]
        assert job_of(bench, request.job.id).error_code == "out_of_memory"

    def test_a_database_that_is_away_for_a_moment_costs_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = bench.request(spec=SPEC)
        real, left = content.save_texts, [None, None]

        def save(uow: Any, claim: Any, kind: str, texts: Any) -> None:
            real(uow, claim, kind, texts)
            if left:
                left.pop()
                raise DatabaseUnavailable

        monkeypatch.setattr(content, "save_texts", save)
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        assert set(engine.rows.values()) == {1}

    def test_a_database_that_stays_away_leaves_the_job_to_the_sweep(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = bench.request(spec=SPEC)

        def away(*_: Any, **__: Any) -> None:
            raise DatabaseUnavailable

        with monkeypatch.context() as patch:
            patch.setattr(content, "save_texts", away)
            patch.setattr(jobs, "fail", away)
            assert bench.runner(database_patience_s=0.05).run(request.job.id) == "lost"
        let_the_lease_run_out(bench, request.job.id)
        assert bench.runner().run(request.job.id) == "succeeded"
