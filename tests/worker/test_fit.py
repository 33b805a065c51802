"""A fit job run on a fake engine: once is enough, and its queries are those that were asked for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.fake_engine import FakeEngine
from alignez_core.fit_config import FitConfig
from alignez_core.query_bank import default_queries
from profiles.models import FitQueryRow, QuerySource
from profiles.service import FitRequest, load_active, nearest_representations
from profiles.spec import OWN_QUERIES
from tests.factories import QUERIES
from tests.worker.conftest import Bench, loaded, texts_of
from tests.worker.fit_cases import (
    SPEC,
    Killed,
    N,
    WatchedEngine,
    finished_texts,
    kill_at,
    let_the_lease_run_out,
    queries_of,
    stored_vectors,
    version_of,
)


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


def test_rows_are_stored_in_several_transactions_and_all_of_them(bench: Bench) -> None:
    request = bench.request(spec=SPEC)
    runner = bench.runner(loaded(), store_rows=5)
    assert dataclasses.replace(runner._options).store_rows < N
    assert runner.run(request.job.id) == "succeeded"
    assert stored_vectors(bench, request) == N * 4
