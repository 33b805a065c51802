"""An evaluation job proves a stored version again: one row a job, whatever happens, and the version stays as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from sqlalchemy import select

from alignez_core.errors import JudgeUnavailable
from profiles.errors import InvalidSpec, NotFound, QuotaExceeded, VersionNotReady
from profiles.fitting import claims as jobs
from profiles.fitting import publishing
from profiles.fitting.evaluations import latest_evaluation, request_evaluation
from profiles.fitting.request import FitRequest
from profiles.models import Job, JobEvent, JobKind, JobStatus, VersionState
from profiles.service import cancel_job, delete_profile
from tests.factories import QUERIES
from tests.worker.conftest import Bench, loaded, scratch_of, texts_of
from tests.worker.fit_cases import (
    ALIGNEZ,
    CHUNK,
    SMALL,
    SPEC,
    FakeJudge,
    Killed,
    WatchedEngine,
    evaluations_of,
    job_of,
    kill_at,
    let_the_lease_run_out,
    stored_vectors,
    version_of,
)

GROUPS: dict[str, Any] = {
    **SPEC,
    "queries": [*QUERIES[:6], *({"text": text, "preferred": "formal"} for text in QUERIES[6:])],
    "fit": {"method": "distill", "contrast": 1.0, "neighbors": 3, **SMALL},
}
PROMPT: dict[str, Any] = {**SPEC, "fit": {"method": "prompt", **SMALL}}


def ready(bench: Bench, spec: dict[str, Any] = SPEC) -> FitRequest:
    request = bench.request(spec=spec)
    assert bench.runner().run(request.job.id) == "succeeded"
    return request


def state(bench: Bench, request: FitRequest) -> Any:
    """All of a version that must not change."""
    version = version_of(bench, request)
    return version.state, version.sha256, version.quality, version.diagnostics, texts_of(bench, version.id)


class TestOnce:
    @pytest.mark.parametrize("spec", [SPEC, ALIGNEZ, GROUPS, PROMPT], ids=["edit", "neighbours", "groups", "prefix"])
    def test_the_same_settings_give_the_verdict_of_the_fit(self, bench: Bench, spec: dict[str, Any]) -> None:
        request = ready(bench, spec)
        before = (state(bench, request), stored_vectors(bench, request))
        job = bench.evaluation(request)
        assert bench.runner().run(job.id) == "succeeded"
        assert (state(bench, request), stored_vectors(bench, request)) == before
        first, second = evaluations_of(bench, request)
        assert (first.job_id, second.job_id) == (request.job.id, job.id)
        assert second.choice is None
        for name in ("comparisons", "situations", "dose", "slices", "expressiveness", "judge", "n", "explained"):
            if spec is not ALIGNEZ or name in ("judge", "n", "slices"):  # stored rows have 16 bits
                assert second.report[name] == first.report[name], name
        if spec is not ALIGNEZ:
            assert (second.quality, second.reasons) == (first.quality, first.reasons)

    def test_a_message_that_comes_twice_gives_one_row(self, bench: Bench) -> None:
        request = ready(bench)
        job = bench.evaluation(request)
        assert bench.runner().run(job.id) == "succeeded"
        assert bench.runner().run(job.id) == "skipped"
        assert len(evaluations_of(bench, request)) == 2
        with bench.open() as uow:
            ends = Counter(uow.session.scalars(select(JobEvent.kind).where(JobEvent.job_id == job.id)))
        assert ends["succeeded"] == 1

    def test_settings_of_its_own(self, bench: Bench) -> None:
        request = ready(bench)
        judge = FakeJudge()
        job = bench.evaluation(request, judge="openai", held_out_queries=7, answer_tokens=4, seed=5)
        assert bench.runner(make_judge=lambda name: judge).run(job.id) == "succeeded"
        with bench.open() as uow:
            last = latest_evaluation(uow, bench.caller, request.profile.id, 1)
            assert latest_evaluation(uow, bench.caller, request.profile.id, 1, "openai").id == last.id
            assert latest_evaluation(uow, bench.caller, request.profile.id, 1, "self").id != last.id
            with pytest.raises(NotFound, match="nano"):
                latest_evaluation(uow, bench.caller, request.profile.id, 1, "nano")
        assert (last.judge, last.report["n"], last.report["seed"]) == ("openai:fake", 7, 5)
        assert judge.closed

    def test_progress_is_told_under_evaluation(self, bench: Bench) -> None:
        job = bench.evaluation(ready(bench))
        bench.runner().run(job.id)
        found = job_of(bench, job.id)
        assert (found.stage, found.kind) == ("evaluation", JobKind.EVALUATE)
        assert set(found.progress) == {"evaluation"}


class TestCrash:
    @pytest.mark.parametrize("call", range(6))
    def test_killed_before_any_batch_it_resumes_from_the_last_chunk(self, bench: Bench, call: int) -> None:
        request = ready(bench)
        whole, job = bench.evaluation(request), bench.evaluation(request)
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(whole.id) == "succeeded"
        killed, second = WatchedEngine(kill_at(call)), WatchedEngine()
        with pytest.raises(Killed):
            bench.runner(loaded(killed)).run(job.id)
        let_the_lease_run_out(bench, job.id)
        assert bench.runner(loaded(second)).run(job.id) == "succeeded"
        assert killed.rows + second.rows == engine.rows
        assert scratch_of(bench, job.id) == {}
        _, first, last = evaluations_of(bench, request)
        assert first.report["comparisons"] == last.report["comparisons"]

    @pytest.mark.parametrize("acknowledged", [False, True])
    def test_killed_around_the_end_there_is_one_verdict(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, acknowledged: bool
    ) -> None:
        request = ready(bench)
        job = bench.evaluation(request)
        real = publishing.publish_evaluation

        def die(uow: Any, claim: Any, verdict: Any) -> None:
            real(uow, claim, verdict)
            if not acknowledged:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(publishing, "publish_evaluation", die)
            if acknowledged:
                assert bench.runner().run(job.id) == "succeeded"
            else:
                with pytest.raises(Killed):
                    bench.runner().run(job.id)
        if not acknowledged:
            assert len(evaluations_of(bench, request)) == 1
            let_the_lease_run_out(bench, job.id)
            second = WatchedEngine()
            assert bench.runner(loaded(second)).run(job.id) == "succeeded"
            assert second.batches == []
        assert bench.runner().run(job.id) == "skipped"
        assert len(evaluations_of(bench, request)) == 2

    def test_a_lost_lease_writes_nothing_more(self, bench: Bench) -> None:
        request = ready(bench)
        job = bench.evaluation(request)
        before: list[Any] = []

        def lose(call: int) -> None:
            if call == 2:
                let_the_lease_run_out(bench, job.id)
                with bench.open() as uow:
                    jobs.claim(uow, job.id, "successor", 60.0)
                before.append(scratch_of(bench, job.id))

        assert bench.runner(loaded(WatchedEngine(lose))).run(job.id) == "lost"
        assert scratch_of(bench, job.id) == before[0]
        assert len(evaluations_of(bench, request)) == 1

    def test_a_cancel_is_seen_between_two_batches_and_leaves_the_version_ready(self, bench: Bench) -> None:
        request = ready(bench)
        job = bench.evaluation(request)

        def cancel(call: int) -> None:
            if call == 1:
                with bench.open() as uow:
                    cancel_job(uow, bench.caller, job.id)

        engine = WatchedEngine(cancel)
        assert bench.runner(loaded(engine)).run(job.id) == "cancelled"
        assert sum(map(len, engine.batches)) <= 2 * CHUNK
        assert version_of(bench, request).state is VersionState.READY
        assert scratch_of(bench, job.id) == {}
        assert len(evaluations_of(bench, request)) == 1

    def test_a_profile_that_is_deleted_meanwhile_ends_it(self, bench: Bench) -> None:
        request = ready(bench)
        job = bench.evaluation(request)

        def delete(call: int) -> None:
            if call == 1:
                with bench.open() as uow:
                    delete_profile(uow, bench.caller, request.profile.id)

        assert bench.runner(loaded(WatchedEngine(delete))).run(job.id) == "cancelled"
        assert len(evaluations_of(bench, request)) == 1


class TestJudges:
    def away(self, from_call: int = 0) -> Any:
        """A judge that cannot be reached from one of its comparisons on."""

        def fail(call: int) -> None:
            if call >= from_call:
                raise JudgeUnavailable("the judge openai:fake failed 3 times: timeout")

        return lambda name: FakeJudge(fail)

    @pytest.mark.parametrize("from_call", [0, 3])
    def test_a_judge_that_is_away_ends_the_job_after_bounded_retries(self, bench: Bench, from_call: int) -> None:
        request = ready(bench)
        before = state(bench, request)
        job = bench.evaluation(request, judge="openai")
        engine = WatchedEngine()
        outcomes = []
        for _ in range(3):
            outcomes.append(bench.runner(loaded(engine), make_judge=self.away(from_call)).run(job.id))
            with bench.open() as uow:
                uow.session.get_one(Job, job.id).run_after = None
        assert outcomes == ["retry", "retry", "failed"]
        ended = job_of(bench, job.id)
        assert (ended.status, ended.error_code) == (JobStatus.FAILED, "judge_unavailable")
        assert "timeout" in (ended.error_message or "")
        assert set(engine.rows.values()) == {1}
        assert state(bench, request) == before
        assert len(evaluations_of(bench, request)) == 1

    @pytest.mark.parametrize("from_call", [0, 3])
    def test_where_the_settings_say_so_it_goes_on_with_self_for_all_verdicts(
        self, bench: Bench, from_call: int
    ) -> None:
        request = ready(bench)
        job = bench.evaluation(request, judge="openai", judge_fallback=True)
        assert bench.runner(make_judge=self.away(from_call)).run(job.id) == "succeeded"
        first, last = evaluations_of(bench, request)
        assert last.judge == last.report["judge"] == "self"
        assert "timeout" in last.report["judge_fallback"]
        assert last.report["comparisons"] == first.report["comparisons"]

    @pytest.mark.parametrize("fallback", [False, True])
    def test_a_fit_does_the_same(self, bench: Bench, fallback: bool) -> None:
        fit = {**SPEC["fit"], "judge": "openai", "judge_fallback": fallback}
        request = bench.request(spec={**SPEC, "fit": fit})
        engine = WatchedEngine()
        outcome = bench.runner(loaded(engine), make_judge=self.away(5)).run(request.job.id)
        assert set(engine.rows.values()) == {1}
        if fallback:
            [evaluation] = evaluations_of(bench, request)
            assert (outcome, evaluation.judge) == ("succeeded", "self")
            assert "timeout" in evaluation.report["judge_fallback"]
        else:
            assert outcome == "retry"
            assert evaluations_of(bench, request) == []
            assert version_of(bench, request).state is VersionState.PENDING


class TestRequests:
    def test_only_a_ready_version_can_be_evaluated(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        with pytest.raises(VersionNotReady):
            bench.evaluation(request)

    def test_unknown_settings_are_refused_by_name(self, bench: Bench) -> None:
        request = ready(bench)
        with pytest.raises(InvalidSpec, match="contrast"):
            bench.evaluation(request, contrast=2.0)

    def test_it_counts_as_an_open_job(self, bench: Bench) -> None:
        request = ready(bench)
        bench.evaluation(request)
        with bench.open() as uow, pytest.raises(QuotaExceeded):
            request_evaluation(uow, bench.caller, request.profile.id, 1, {}, max_queued_jobs=1)
