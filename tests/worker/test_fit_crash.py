"""A fit that is killed or stopped costs one chunk, and its result is that of one that was not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from alignez_core.engines.base import GenerationRequest
from profiles import jobs
from profiles.models import JobStatus, QuerySource, VersionState
from profiles.service import cancel_job
from profiles.uow import SessionFactory, UnitOfWork
from tests.conftest import empty_tables
from tests.factories import Factory
from tests.worker.conftest import Bench, loaded, texts_of
from tests.worker.fit_cases import (
    CHUNK,
    SPEC,
    Killed,
    N,
    Uninterrupted,
    WatchedEngine,
    finished_texts,
    job_of,
    kill_at,
    let_the_lease_run_out,
    queries_of,
    stored_vectors,
    version_of,
)
from tests.worker.processes import wait_for


class TestCrash:
    @pytest.fixture(scope="class")
    @classmethod
    def uninterrupted(cls, real_sessions: SessionFactory) -> Uninterrupted:
        """A fit that nothing disturbs."""
        with UnitOfWork.open(real_sessions) as uow:
            bench = Bench(real_sessions, Factory(uow).caller())
        request = bench.request(spec=SPEC)
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        result = version_of(bench, request).sha256, texts_of(bench, request.version.id), engine.rows
        empty_tables(real_sessions)
        return result

    @pytest.mark.parametrize("call", range(6))
    def test_killed_before_any_batch_nothing_is_lost_or_made_twice(
        self, bench: Bench, uninterrupted: Uninterrupted, call: int
    ) -> None:
        sha256, texts, rows = uninterrupted
        request = bench.request(spec=SPEC)
        killed, second = WatchedEngine(kill_at(call)), WatchedEngine()
        with pytest.raises(Killed):
            bench.runner(loaded(killed)).run(request.job.id)
        assert bench.runner(loaded(second)).run(request.job.id) == "skipped"  # the lease still holds
        let_the_lease_run_out(bench, request)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert killed.rows + second.rows == rows
        assert len(killed.batches) == call
        assert texts_of(bench, request.version.id) == texts
        assert version_of(bench, request).sha256 == sha256
        assert (job_of(bench, request).attempt, job_of(bench, request).failures) == (2, 1)

    def test_killed_while_a_chunk_is_written_makes_that_chunk_twice_at_most(
        self, bench: Bench, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256, texts, rows = uninterrupted
        request = bench.request(spec=SPEC)
        killed, second = WatchedEngine(), WatchedEngine()
        save = jobs.save_chunk

        def save_and_die(uow: Any, claim: Any, chunk: jobs.TextChunk) -> None:
            save(uow, claim, chunk)
            if CHUNK in chunk.positions:
                raise Killed  # before the commit

        with monkeypatch.context() as patch:
            patch.setattr(jobs, "save_chunk", save_and_die)
            with pytest.raises(Killed):
                bench.runner(loaded(killed)).run(request.job.id)
        assert finished_texts(bench, request)["characteristics"] == [*range(CHUNK)]
        let_the_lease_run_out(bench, request)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        doubled = killed.rows + second.rows - rows
        assert sum(doubled.values()) == 2 * CHUNK  # both sides of one chunk
        assert texts_of(bench, request.version.id) == texts
        assert version_of(bench, request).sha256 == sha256

    @pytest.mark.parametrize("step", ["save_representations", "publish"])
    @pytest.mark.parametrize("committed_before", [False, True])
    def test_killed_after_the_last_batch_generates_nothing_again(
        self,
        bench: Bench,
        uninterrupted: Uninterrupted,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        committed_before: bool,
    ) -> None:
        sha256, texts, _ = uninterrupted
        request = bench.request(spec=SPEC)
        real = getattr(jobs, step)
        calls: list[None] = []

        def die(uow: Any, claim: Any, *arguments: Any) -> None:
            if not committed_before or calls:
                raise Killed
            calls.append(None)
            real(uow, claim, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(jobs, step, die)
            if step == "publish" and committed_before:
                # Published and killed before the message was acknowledged: it comes again.
                assert bench.runner().run(request.job.id) == "succeeded"
                assert bench.runner().run(request.job.id) == "skipped"
                return
            with pytest.raises(Killed):
                bench.runner().run(request.job.id)
        let_the_lease_run_out(bench, request)
        second = WatchedEngine()
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert second.batches == []
        assert texts_of(bench, request.version.id) == texts
        assert stored_vectors(bench, request) == N * second.info.n_layers
        assert version_of(bench, request).sha256 == sha256

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
        assert job_of(bench, request).status is JobStatus.RUNNING
        let_the_lease_run_out(bench, request)
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
        let_the_lease_run_out(bench, request)
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
        let_the_lease_run_out(bench, request)
        assert bench.runner(loaded(WatchedEngine(reply=reply))).run(request.job.id) == "succeeded"
        assert version_of(bench, request).sha256 == version_of(bench, whole).sha256


class TestStopped:
    def test_a_worker_that_lost_its_lease_writes_nothing_more(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        successors = []

        def lose(call: int) -> None:
            if call == 2:
                let_the_lease_run_out(bench, request)
                with bench.open() as uow:
                    successors.append(jobs.claim(uow, request.job.id, "successor", 60.0))

        assert bench.runner(loaded(WatchedEngine(lose))).run(request.job.id) == "lost"
        assert finished_texts(bench, request) == {"characteristics": [*range(2 * CHUNK)], "responses": []}
        job = job_of(bench, request)
        assert (job.status, job.worker, job.attempt) == (JobStatus.RUNNING, "successor", 2)

    def test_a_cancel_is_seen_between_two_batches(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)

        def cancel(call: int) -> None:
            if call == 1:
                with bench.open() as uow:
                    cancel_job(uow, bench.caller, request.job.id)

        engine = WatchedEngine(cancel)
        assert bench.runner(loaded(engine)).run(request.job.id) == "cancelled"
        assert len(engine.batches) == 2
        assert job_of(bench, request).status is JobStatus.CANCELLED
        assert version_of(bench, request).state is VersionState.FAILED

    def test_a_worker_that_shuts_down_hands_the_job_back_with_what_is_done(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        engine, second = WatchedEngine(), WatchedEngine()
        assert (
            bench.runner(loaded(engine), stopping=lambda: len(engine.batches) >= 2).run(request.job.id) == "handed_back"
        )
        assert (job_of(bench, request).status, job_of(bench, request).failures) == (JobStatus.QUEUED, 0)
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert len(engine.batches) == 2
        assert len(second.batches) <= 5  # the batch under way at the stop may be made twice
        assert finished_texts(bench, request)["responses"] == [*range(N)]

    def test_a_worker_that_shuts_down_takes_no_job(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        assert bench.runner(stopping=lambda: True).run(request.job.id) == "skipped"
        assert job_of(bench, request).attempt == 0

    def test_heartbeats_keep_a_job_longer_than_its_lease(self, bench: Bench) -> None:
        request = bench.request(spec={**SPEC, "fit": {**SPEC["fit"], "response_tokens": 2, "responses": 8}})
        beaten = []

        def sweep(call: int) -> None:
            if call == 1:
                first = job_of(bench, request).lease_until
                assert first is not None
                wait_for(lambda: datetime.now(UTC) > first, what="the end of that lease")
                with bench.open() as uow:
                    beaten.append(jobs.sweep(uow, 20.0)[0])

        assert bench.runner(loaded(WatchedEngine(sweep)), lease_s=0.6).run(request.job.id) == "succeeded"
        assert beaten == [0]
