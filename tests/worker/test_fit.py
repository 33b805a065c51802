"""A fit job run on a fake engine: once is enough, a crash costs one chunk, and every ending has its code."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import func, select, update
from torch import Tensor

from alignez_core.engines.base import Completion, GenerationRequest
from alignez_core.engines.fake_engine import FakeEngine
from alignez_core.errors import EngineClosed, OutOfMemory
from alignez_core.fit_config import FitConfig
from alignez_core.query_bank import default_queries
from profiles import jobs
from profiles.errors import DatabaseUnavailable
from profiles.models import FitQueryRow, Job, JobStatus, ProfileVersion, QueryRepresentations, QuerySource, VersionState
from profiles.service import FitRequest, cancel_job, get_job, load_active, nearest_representations
from profiles.spec import OWN_QUERIES
from profiles.uow import SessionFactory, UnitOfWork
from tests.conftest import empty_tables
from tests.factories import QUERIES, Factory
from tests.worker.conftest import Bench, loaded, texts_of
from worker.metrics import WorkerMetrics

N = len(QUERIES)
CHUNK = 4
#: Three chunks of characteristics, then three of responses.
SPEC: dict[str, Any] = {
    "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
    "queries": QUERIES,
    "fit": {"neighbors": 3, "chunk_size": CHUNK, "responses": "all", "response_tokens": 12},
}

#: sha256, texts by position, and generated rows.
Uninterrupted = tuple[str | None, dict[int, tuple[str | None, ...]], Counter[tuple[Any, ...]]]


class Killed(BaseException):
    """A kill -9, as far as one process can play it: nothing that catches errors sees it."""


class WatchedEngine(FakeEngine):
    """Calls `before` with the number of the generation that is about to start, and keeps every batch."""

    def __init__(self, before: Any = lambda call: None, **options: Any) -> None:
        super().__init__(**options)
        self.before = before
        self.batches: list[Sequence[GenerationRequest]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.before(len(self.batches))
        self.batches.append(requests)
        return super().generate(requests)

    @property
    def rows(self) -> Counter[tuple[Any, ...]]:
        """How often each row was generated."""
        return Counter((request.prompt, request.seed) for batch in self.batches for request in batch)


class FlatEngine(FakeEngine):
    """Represents everything as zero, so that no direction exists."""

    def represent(self, texts: Any, positions: Any = "last") -> Tensor:
        return torch.zeros_like(super().represent(texts, positions))


def kill_at(call: int) -> Any:
    def kill(number: int) -> None:
        if number == call:
            raise Killed

    return kill


def let_the_lease_run_out(bench: Bench, request: FitRequest) -> None:
    with bench.open() as uow:
        past = func.clock_timestamp() - timedelta(seconds=1)
        uow.session.execute(update(Job).where(Job.id == request.job.id).values(lease_until=past))
    with bench.open() as uow:
        assert jobs.sweep(uow, 20.0)[0] == 1


def job_of(bench: Bench, request: FitRequest) -> Job:
    with bench.open() as uow:
        return get_job(uow, bench.caller, request.job.id)


def version_of(bench: Bench, request: FitRequest) -> ProfileVersion:
    with bench.open() as uow:
        return uow.session.get_one(ProfileVersion, request.version.id)


def queries_of(bench: Bench, request: FitRequest) -> list[FitQueryRow]:
    with bench.open() as uow:
        return uow.repository.fits.queries(request.version.id)


def stored_vectors(bench: Bench, request: FitRequest) -> int:
    with bench.open() as uow:
        count = select(func.coalesce(func.sum(func.cardinality(QueryRepresentations.layers)), 0))
        return uow.session.scalars(count.where(QueryRepresentations.version_id == request.version.id)).one()


def finished_texts(bench: Bench, request: FitRequest) -> dict[str, list[int]]:
    """Which positions are stored, by kind."""
    pairs = texts_of(bench, request.version.id)
    return {
        "characteristics": [i for i, pair in pairs.items() if pair[0] is not None and pair[1] is not None],
        "responses": [i for i, pair in pairs.items() if pair[2] is not None and pair[3] is not None],
    }


class TestOnce:
    def test_a_job_is_done_once_however_often_its_message_comes(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        runner = bench.runner()
        assert runner.run(request.job.id) == "succeeded"
        before = (texts_of(bench, request.version.id), stored_vectors(bench, request))
        assert runner.run(request.job.id) == "skipped"
        assert (texts_of(bench, request.version.id), stored_vectors(bench, request)) == before

    def test_every_query_has_one_pair_and_one_representation_a_layer(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        assert finished_texts(bench, request) == {"characteristics": [*range(N)], "responses": [*range(N)]}
        assert stored_vectors(bench, request) == N * engine.info.n_layers
        assert set(engine.rows.values()) == {1}

    def test_a_message_for_a_job_that_does_not_exist_is_harmless(self, bench: Bench) -> None:
        assert bench.runner().run(bench.caller.tenant_id) == "skipped"

    def test_two_jobs_with_the_same_spec_give_the_same_version(self, bench: Bench) -> None:
        first, second = bench.request(spec=SPEC), bench.request(spec=SPEC)
        for request in (first, second):
            assert bench.runner().run(request.job.id) == "succeeded"
        assert version_of(bench, first).sha256 == version_of(bench, second).sha256

    def test_the_stored_version_serves_requests(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        engine = FakeEngine()
        bench.runner(loaded(engine)).run(request.job.id)
        with bench.open() as uow:
            active = load_active(uow, request.version.id)
            own = np.asarray(queries_embedding(uow, request), np.float32)
            found = nearest_representations(uow, request.version.id, own, 3)
        assert active.fingerprint == engine.info.fingerprint
        assert FitConfig.from_dict(active.config).neighbors == 3
        assert active.layers == found.layers == tuple(range(engine.info.n_layers))
        assert active.theta is not None
        assert active.theta.shape == (engine.info.n_layers, engine.info.hidden_size)
        assert found.similarities[0] == pytest.approx(1.0, abs=1e-5)

    def test_events_tell_every_stage_in_order(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        bench.runner().run(request.job.id)
        with bench.open() as uow:
            events = uow.repository.jobs.events(request.job.id, 0, 200)
        stages = list(dict.fromkeys(e.payload["stage"] for e in events if e.kind == "progress"))
        assert stages == ["characteristics", "responses", "representations", "directions", "evaluation"]
        assert events[-1].kind == "succeeded"
        progress = events[-1].payload["progress"]
        assert progress["characteristics"] == progress["responses"] == {"done": N, "total": N}


def queries_embedding(uow: Any, request: FitRequest) -> Any:
    embedding = select(FitQueryRow.embedding).where(FitQueryRow.version_id == request.version.id)
    return uow.session.scalars(embedding.order_by(FitQueryRow.position).limit(1)).one()


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
        stopping = lambda: len(engine.batches) >= 2  # noqa: E731
        assert bench.runner(loaded(engine), stopping=stopping).run(request.job.id) == "handed_back"
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
                time.sleep(0.9)
                with bench.open() as uow:
                    beaten.append(jobs.sweep(uow, 20.0)[0])

        assert bench.runner(loaded(WatchedEngine(sweep)), lease_s=0.6).run(request.job.id) == "succeeded"
        assert beaten == [0]


class TestQueries:
    def test_a_persona_alone_is_fitted_on_the_bank_and_the_models_own(self, bench: Bench) -> None:
        def reply(request: GenerationRequest) -> str:
            return f"What about question {request.seed}?\nNext"

        request = bench.request(spec={"persona": SPEC["persona"], "fit": {"responses": 0}})
        engine = loaded(WatchedEngine(reply=reply))
        assert bench.runner(engine).run(request.job.id) == "succeeded"
        sources = Counter(query.source for query in queries_of(bench, request))
        assert sources == {QuerySource.BANK: len(engine.query_bank), QuerySource.INVENTED: OWN_QUERIES}
        assert [q.text for q in queries_of(bench, request)][: len(engine.query_bank)] == list(engine.query_bank)
        config = version_of(bench, request).fit_config
        assert config is not None
        assert (config["own_queries"], config["neighbors"]) == (OWN_QUERIES, 10)

    @pytest.mark.parametrize(
        ("spec", "bank", "neighbors"),
        [
            ({"queries": QUERIES}, 16, 10),
            ({"queries": QUERIES[:3]}, 16, 3),
            ({"queries": QUERIES[:3], "fit": {"own_queries": 2}}, 16, 5),
            ({"queries": QUERIES[:2], "pairs": [{"query": "Tea?", "preferred": "Yes!", "dispreferred": "No."}]}, 16, 3),
            ({"persona": SPEC["persona"], "fit": {"own_queries": 0}}, 4, 4),
            ({"persona": SPEC["persona"]}, 4, 10),
            ({"queries": QUERIES, "fit": {"neighbors": 2}}, 16, 2),
        ],
        ids=["many", "few", "few and own", "with a pair", "small bank", "small bank and own", "explicit"],
    )
    def test_an_open_k_is_ten_or_all_there_is_and_the_version_shows_it(
        self, bench: Bench, spec: dict[str, Any], bank: int, neighbors: int
    ) -> None:
        def reply(request: GenerationRequest) -> str:
            return f"What about question {request.seed}?\nNext"

        fit = {"responses": 0, **spec.get("fit", {})}
        request = bench.request(spec={**spec, "fit": fit})
        engine = loaded(WatchedEngine(reply=reply), default_queries()[:bank])
        assert bench.runner(engine).run(request.job.id) == "succeeded"
        version = version_of(bench, request)
        assert version.fit_config is not None
        assert version.fit_config["neighbors"] == neighbors
        assert version.spec["fit"] == fit

    def test_every_attempt_has_the_same_k(self, bench: Bench) -> None:
        def reply(request: GenerationRequest) -> str:
            return f"What about question {request.seed}?\nNext"

        spec = {"queries": QUERIES[:3], "fit": {"own_queries": 2, "responses": 0}}
        request = bench.request(spec=spec)
        with pytest.raises(Killed):
            bench.runner(loaded(WatchedEngine(kill_at(1), reply=reply))).run(request.job.id)
        assert len(queries_of(bench, request)) == 5
        let_the_lease_run_out(bench, request)
        assert bench.runner(loaded(WatchedEngine(reply=reply))).run(request.job.id) == "succeeded"
        assert (version_of(bench, request).fit_config or {})["neighbors"] == 5

    def test_given_queries_are_all_there_is(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        bench.runner().run(request.job.id)
        stored = queries_of(bench, request)
        assert {query.source for query in stored} == {QuerySource.GIVEN}
        assert [query.text for query in stored] == QUERIES

    def test_given_pairs_are_stored_and_nothing_is_generated_for_them(self, bench: Bench) -> None:
        pairs = [
            {"query": text, "preferred": f"Gladly, {i}!", "dispreferred": f"No, {i}."} for i, text in enumerate(QUERIES)
        ]
        request = bench.request(spec={"pairs": pairs, "fit": {"neighbors": 3}})
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        assert engine.batches == []
        assert {query.source for query in queries_of(bench, request)} == {QuerySource.PAIR}
        texts = texts_of(bench, request.version.id)
        assert [texts[i][2:] for i in range(N)] == [(p["preferred"], p["dispreferred"]) for p in pairs]

    def test_every_given_pair_keeps_its_answers_beyond_the_sample_of_responses(self, bench: Bench) -> None:
        pairs = [
            {"query": f"What is {i}?", "preferred": f"Gladly, {i}!", "dispreferred": f"No, {i}."} for i in range(40)
        ]
        request = bench.request(spec={"pairs": pairs, "fit": {"neighbors": 3}})
        assert bench.runner().run(request.job.id) == "succeeded"
        texts = texts_of(bench, request.version.id)
        assert [texts[i][2:] for i in range(40)] == [(p["preferred"], p["dispreferred"]) for p in pairs]

    def test_a_pair_that_the_context_does_not_hold_is_dropped_with_its_reason(self, bench: Bench) -> None:
        pairs = [
            {"query": f"What is {i}?", "preferred": f"Gladly, {i}!", "dispreferred": f"No, {i}."} for i in range(9)
        ]
        pairs[4]["preferred"] = "on and " * 300
        request = bench.request(spec={"pairs": pairs, "fit": {"neighbors": 3}})
        assert bench.runner().run(request.job.id) == "succeeded"
        with bench.open() as uow:
            dropped = {at: pair.dropped for at, pair in uow.repository.fits.pairs(request.version.id) if pair.dropped}
        assert list(dropped) == [4]
        assert "the context holds 512" in str(dropped[4])

    def test_a_query_with_phrases_of_its_own_is_asked_with_them(self, bench: Bench) -> None:
        queries = [*QUERIES[1:], {"text": "A letter to my bank", "preferred": "formal", "dispreferred": "chatty"}]
        request = bench.request(spec={**SPEC, "queries": queries})
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        asked = [str(r.prompt) for batch in engine.batches for r in batch if "my bank" in str(r.prompt)]
        assert any("formal" in prompt for prompt in asked)
        assert not any("cheerful" in prompt for prompt in asked)

    def test_empty_answers_are_dropped_with_their_reason(self, bench: Bench) -> None:
        def reply(request: GenerationRequest) -> str:
            return "" if "number 5?" in str(request.prompt) else f"answer {request.seed}"

        fit = {**SPEC["fit"], "method": "alignez", "representation": "response_last"}
        request = bench.request(spec={**SPEC, "fit": fit})
        assert bench.runner(loaded(WatchedEngine(reply=reply))).run(request.job.id) == "succeeded"
        with bench.open() as uow:
            dropped = {at: pair.dropped for at, pair in uow.repository.fits.pairs(request.version.id) if pair.dropped}
        assert dropped == {5: "an empty response"}


class TestFailures:
    def ended(self, bench: Bench, engine: Any, spec: dict[str, Any] | None = None, **options: Any) -> Job:
        """The job after one run that failed for good."""
        request = bench.request(spec=spec or SPEC)
        assert bench.runner(engine, **options).run(request.job.id) == "failed"
        job = job_of(bench, request)
        assert job.status is JobStatus.FAILED
        assert version_of(bench, request).state is VersionState.FAILED
        return job

    def test_no_direction_to_be_found(self, bench: Bench) -> None:
        assert self.ended(bench, loaded(FlatEngine())).error_code == "degenerate_directions"

    def test_a_prompt_longer_than_the_context(self, bench: Bench) -> None:
        job = self.ended(bench, loaded(FakeEngine(context_length=16)))
        assert job.error_code == "context_length_exceeded"
        assert "16 tokens" in (job.error_message or "")

    def test_more_neighbours_than_the_bank_has_queries(self, bench: Bench) -> None:
        spec = {"persona": SPEC["persona"], "fit": {"own_queries": 0, "neighbors": 4}}
        job = self.ended(bench, loaded(bank=("One?", "Two?")), spec)
        assert job.error_code == "too_few_samples"
        assert "neighbors=4 is more than the 2" in (job.error_message or "")

    def test_a_model_that_invents_too_few_queries(self, bench: Bench) -> None:
        spec = {"persona": SPEC["persona"], "fit": {"own_queries": 8}}
        engine = WatchedEngine(reply=lambda request: "always the same question?\n")
        job = self.ended(bench, loaded(engine, ("One?", "Two?", "Three?")), spec)
        assert job.error_code == "too_few_samples"

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
        job = job_of(bench, request)
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
        job = job_of(bench, request)
        assert (job.status, job.error_code, job.failures) == (JobStatus.QUEUED, code, 1)
        assert bench.runner(loaded(second)).run(request.job.id) == "skipped"  # not before its pause
        with bench.open() as uow:
            uow.session.execute(update(Job).values(run_after=None))
        assert bench.runner(loaded(second)).run(request.job.id) == "succeeded"
        assert set((first.rows + second.rows).values()) == {1}
        assert job_of(bench, request).error_code is None

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
        assert value("alignez_fit_tokens_total") == version.diagnostics["last_attempt"]["tokens_generated"]
        assert value("alignez_fit_seconds_count") == 1
        stages = version.diagnostics["last_attempt"]["seconds"]
        assert all(value("alignez_fit_stage_seconds_count", stage=stage) == 1 for stage in stages)
        assert value("alignez_worker_busy") == 0

    def test_an_error_that_does_not_pass_ends_the_job(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        outcomes = []
        for _ in range(3):
            outcomes.append(bench.runner(loaded(FakeEngine(error=OutOfMemory("no memory")))).run(request.job.id))
            with bench.open() as uow:
                uow.session.execute(update(Job).values(run_after=None))
        assert outcomes == ["retry", "retry", "failed"]
        assert job_of(bench, request).error_code == "out_of_memory"

    def test_a_database_that_is_away_for_a_moment_costs_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = bench.request(spec=SPEC)
        real, left = jobs.save_chunk, [None, None]

        def save(uow: Any, claim: Any, chunk: jobs.TextChunk) -> None:
            real(uow, claim, chunk)
            if left:
                left.pop()
                raise DatabaseUnavailable

        monkeypatch.setattr(jobs, "save_chunk", save)
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
            for name in ("save_chunk", "fail"):
                patch.setattr(jobs, name, away)
            assert bench.runner(database_patience_s=0.05).run(request.job.id) == "lost"
        let_the_lease_run_out(bench, request)
        assert bench.runner().run(request.job.id) == "succeeded"


def test_rows_are_stored_in_several_transactions_and_all_of_them(bench: Bench) -> None:
    request = bench.request(spec=SPEC)
    runner = bench.runner(loaded(), store_rows=5)
    assert dataclasses.replace(runner._options).store_rows < N
    assert runner.run(request.job.id) == "succeeded"
    assert stored_vectors(bench, request) == N * 4
