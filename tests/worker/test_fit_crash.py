"""A job that is killed or stopped costs one chunk, and its result is that of one that was not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from alignez_core.engines.base import GenerationRequest
from profiles.fitting import claims as jobs
from profiles.fitting import content, publishing
from profiles.models import JobStatus, QuerySource, VersionState
from profiles.service import cancel_job
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.conftest import empty_tables
from tests.factories import Factory
from tests.worker.conftest import Bench, loaded, scratch_of, texts_of
from tests.worker.fit_cases import (
    ALIGNEZ,
    CHUNK,
    SPEC,
    Killed,
    N,
    Uninterrupted,
    WatchedEngine,
    evaluations_of,
    job_of,
    kill_at,
    let_the_lease_run_out,
    queries_of,
    stored_vectors,
    version_of,
)
from tests.worker.processes import wait_for

#: Batches of a fit of `SPEC`: own answers, the choice on the tune split (all single turns, then where users are), and
#: the proof (all situations, doses, neutral and harmful queries).
BATCHES = 9


def stage_of(bench: Bench, request: Any) -> str | None:
    return job_of(bench, request.job.id).stage


class TestCrash:
    @pytest.fixture(scope="class")
    @classmethod
    def uninterrupted(cls, real_sessions: SessionFactory, owner_sessions: SessionFactory) -> Uninterrupted:
        """A fit that nothing disturbs."""
        with UnitOfWork.open(real_sessions, PLATFORM) as uow:
            bench = Bench(real_sessions, Factory(uow).caller())
        request = bench.request(spec=SPEC)
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        result = version_of(bench, request).sha256, texts_of(bench, request.version.id), engine.rows
        assert len(engine.batches) == BATCHES
        empty_tables(owner_sessions)
        return result

    @pytest.mark.parametrize("call", range(BATCHES))
    def test_killed_before_any_batch_nothing_is_lost_or_made_twice(
        self, bench: Bench, uninterrupted: Uninterrupted, call: int
    ) -> None:
        sha256, texts, rows = uninterrupted
        request = bench.request(spec=SPEC)
        killed, second = WatchedEngine(kill_at(call)), WatchedEngine()
        with pytest.raises(Killed):
            bench.runner(loaded(killed)).run(request.job.id)
        assert evaluations_of(bench, request) == []
        assert bench.runner(loaded(second)).run(request.job.id) == "skipped"  # the lease still holds
        let_the_lease_run_out(bench, request.job.id)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert killed.rows + second.rows == rows
        assert len(killed.batches) == call
        assert texts_of(bench, request.version.id) == texts
        assert version_of(bench, request).sha256 == sha256
        assert len(evaluations_of(bench, request)) == 1
        assert scratch_of(bench, request.job.id) == {}
        job = job_of(bench, request.job.id)
        assert (job.attempt, job.failures) == (2, 1)

    @pytest.mark.parametrize("stage", ["readings", "fitting", "tuning", "evaluation"])
    def test_killed_in_any_stage_without_texts_of_its_own_it_goes_on(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        spec = ALIGNEZ if stage == "readings" else SPEC
        whole, request = bench.request(spec=spec), bench.request(spec=spec)
        assert bench.runner().run(whole.job.id) == "succeeded"
        record = jobs.record_progress

        def record_and_die(uow: UnitOfWork, claim: jobs.Claim, at: str, done: int, total: int) -> None:
            record(uow, claim, at, done, total)
            if at == stage and done:
                raise Killed

        killed, second = WatchedEngine(), WatchedEngine()
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "record_progress", record_and_die)
            with pytest.raises(Killed):
                bench.runner(loaded(killed)).run(request.job.id)
        let_the_lease_run_out(bench, request.job.id)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert sum((count - 1) for count in (killed.rows + second.rows).values()) <= CHUNK
        assert version_of(bench, request).sha256 == version_of(bench, whole).sha256

    def test_killed_while_a_chunk_is_written_makes_that_chunk_twice_at_most(
        self, bench: Bench, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256, texts, rows = uninterrupted
        request = bench.request(spec=SPEC)
        killed, second = WatchedEngine(), WatchedEngine()
        save = content.save_texts

        def save_and_die(uow: Any, claim: Any, kind: str, made: dict[int, str]) -> None:
            save(uow, claim, kind, made)
            if kind == "help_response" and CHUNK in made:
                raise Killed  # before the commit

        with monkeypatch.context() as patch:
            patch.setattr(content, "save_texts", save_and_die)
            with pytest.raises(Killed):
                bench.runner(loaded(killed)).run(request.job.id)
        assert CHUNK not in texts_of(bench, request.version.id)
        let_the_lease_run_out(bench, request.job.id)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        doubled = killed.rows + second.rows - rows
        assert 0 < sum(doubled.values()) <= CHUNK
        assert texts_of(bench, request.version.id) == texts
        assert version_of(bench, request).sha256 == sha256

    @pytest.mark.parametrize("step", ["save_embeddings", "publish"])
    @pytest.mark.parametrize("committed_before", [False, True])
    def test_killed_after_the_last_batch_generates_nothing_again(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str, committed_before: bool
    ) -> None:
        whole, request = bench.request(spec=ALIGNEZ), bench.request(spec=ALIGNEZ)
        assert bench.runner().run(whole.job.id) == "succeeded"
        module = publishing if step == "publish" else content
        real = getattr(module, step)
        calls: list[None] = []

        def die(uow: Any, claim: Any, *arguments: Any) -> None:
            if not committed_before or calls:
                raise Killed
            calls.append(None)
            real(uow, claim, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, step, die)
            if step == "publish" and committed_before:
                # Published and killed before the message was acknowledged: it comes again.
                assert bench.runner().run(request.job.id) == "succeeded"
                assert bench.runner().run(request.job.id) == "skipped"
                assert len(evaluations_of(bench, request)) == 1
                return
            with pytest.raises(Killed):
                bench.runner().run(request.job.id)
        let_the_lease_run_out(bench, request.job.id)
        second = WatchedEngine()
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert second.batches == []
        assert texts_of(bench, request.version.id) == texts_of(bench, whole.version.id)
        assert stored_vectors(bench, request) == stored_vectors(bench, whole)
        assert version_of(bench, request).sha256 == version_of(bench, whole).sha256

    def test_killed_right_after_the_claim_another_worker_does_it_all(
        self, bench: Bench, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256, _, rows = uninterrupted
        request = bench.request(spec=SPEC)

        def die(*_: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(jobs, "bind_model", die)
            with pytest.raises(Killed):
                bench.runner().run(request.job.id)
        assert job_of(bench, request.job.id).status is JobStatus.RUNNING
        let_the_lease_run_out(bench, request.job.id)
        second = WatchedEngine()
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert second.rows == rows
        assert version_of(bench, request).sha256 == sha256

    @pytest.mark.parametrize("call", [1, 2])
    def test_the_models_own_queries_survive_a_crash(self, bench: Bench, call: int) -> None:
        def reply(request: GenerationRequest) -> str:
            return f"What about question {request.seed}?\nNext"

        spec = {**SPEC, "fit": {**SPEC["fit"], "own_queries": 3}}
        whole, request = bench.request(spec=spec), bench.request(spec=spec)
        bench.runner(loaded(WatchedEngine(reply=reply))).run(whole.job.id)
        killed, second = WatchedEngine(kill_at(call), reply=reply), WatchedEngine(reply=reply)
        with pytest.raises(Killed):
            bench.runner(loaded(killed)).run(request.job.id)
        let_the_lease_run_out(bench, request.job.id)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert [q.text for q in queries_of(bench, request)] == [q.text for q in queries_of(bench, whole)]
        assert sum(q.source is QuerySource.INVENTED for q in queries_of(bench, request)) == 3
        assert set((killed.rows + second.rows).values()) == {1}
        assert version_of(bench, request).sha256 == version_of(bench, whole).sha256

    def test_a_nul_that_the_model_wrote_resumes_to_the_same_version(self, bench: Bench) -> None:
        """Postgres holds no NUL, so the texts in memory must not hold one either."""

        def reply(request: GenerationRequest) -> str:
            return f"a\x00b {request.seed}"

        whole, request = bench.request(spec=SPEC), bench.request(spec=SPEC)
        assert bench.runner(loaded(WatchedEngine(reply=reply))).run(whole.job.id) == "succeeded"
        with pytest.raises(Killed):
            bench.runner(loaded(WatchedEngine(kill_at(4), reply=reply))).run(request.job.id)
        let_the_lease_run_out(bench, request.job.id)
        assert bench.runner(loaded(WatchedEngine(reply=reply))).run(request.job.id) == "succeeded"
        assert version_of(bench, request).sha256 == version_of(bench, whole).sha256


class TestStopped:
    @pytest.mark.parametrize(("call", "stage"), [(1, "responses"), (3, "tuning"), (BATCHES - 1, "evaluation")])
    def test_a_worker_that_lost_its_lease_writes_nothing_more(self, bench: Bench, call: int, stage: str) -> None:
        request = bench.request(spec=SPEC)
        before: list[Any] = []

        def texts() -> Any:
            return texts_of(bench, request.version.id), scratch_of(bench, request.job.id)

        def lose(number: int) -> None:
            if number == call:
                assert stage_of(bench, request) == stage
                let_the_lease_run_out(bench, request.job.id)
                with bench.open() as uow:
                    jobs.claim(uow, request.job.id, "successor", 60.0)
                before.append(texts())

        assert bench.runner(loaded(WatchedEngine(lose))).run(request.job.id) == "lost"
        assert texts() == before[0]
        job = job_of(bench, request.job.id)
        assert (job.status, job.worker, job.attempt) == (JobStatus.RUNNING, "successor", 2)
        assert evaluations_of(bench, request) == []

    @pytest.mark.parametrize(("call", "stage"), [(1, "responses"), (3, "tuning"), (BATCHES - 1, "evaluation")])
    def test_a_cancel_is_seen_between_two_batches(self, bench: Bench, call: int, stage: str) -> None:
        request = bench.request(spec=SPEC)

        def cancel(number: int) -> None:
            if number == call:
                assert stage_of(bench, request) == stage
                with bench.open() as uow:
                    cancel_job(uow, bench.caller, request.job.id)

        engine = WatchedEngine(cancel)
        assert bench.runner(loaded(engine)).run(request.job.id) == "cancelled"
        assert len(engine.batches) == call + 1
        assert job_of(bench, request.job.id).status is JobStatus.CANCELLED
        assert version_of(bench, request).state is VersionState.FAILED
        assert scratch_of(bench, request.job.id) == {}
        assert evaluations_of(bench, request) == []

    def test_a_worker_that_shuts_down_hands_the_job_back_with_what_is_done(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        engine, second = WatchedEngine(), WatchedEngine()
        assert (
            bench.runner(loaded(engine), stopping=lambda: len(engine.batches) >= 2).run(request.job.id) == "handed_back"
        )
        job = job_of(bench, request.job.id)
        assert (job.status, job.failures) == (JobStatus.QUEUED, 0)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert len(engine.batches) == 2
        assert len(second.batches) <= BATCHES - 1  # the batch under way at the stop may be made twice
        assert {at for at, pair in texts_of(bench, request.version.id).items() if pair[2]} == set(range(N + 6))

    def test_a_worker_that_shuts_down_takes_no_job(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        assert bench.runner(stopping=lambda: True).run(request.job.id) == "skipped"
        assert job_of(bench, request.job.id).attempt == 0

    def test_heartbeats_keep_a_job_longer_than_its_lease(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        beaten = []

        def sweep(call: int) -> None:
            if call == 1:
                first = job_of(bench, request.job.id).lease_until
                assert first is not None
                wait_for(lambda: datetime.now(UTC) > first, what="the end of that lease")
                with bench.open() as uow:
                    beaten.append(jobs.sweep(uow, 20.0)[0])

        assert bench.runner(loaded(WatchedEngine(sweep)), lease_s=0.6).run(request.job.id) == "succeeded"
        assert beaten == [0]
