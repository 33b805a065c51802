"""A fit job run on a fake engine: once is enough, and its queries are those that were asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.query_bank import default_queries
from alignez_core.spec.config import FitConfig
from profiles.errors import NoDefaultVersion
from profiles.fitting.request import FitRequest
from profiles.models import FitQueryRow, QuerySource, QuerySplit
from profiles.service import list_aliases, load_active, nearest_groups, nearest_representations, pick_version
from tests.factories import QUERIES
from tests.worker.conftest import Bench, loaded, scratch_of, texts_of
from tests.worker.fit_cases import (
    ALIGNEZ,
    SMALL,
    SPEC,
    FakeJudge,
    Killed,
    N,
    WatchedEngine,
    evaluations_of,
    kill_at,
    let_the_lease_run_out,
    queries_of,
    stored_vectors,
    version_of,
)


class TestOnce:
    @pytest.mark.parametrize("spec", [SPEC, ALIGNEZ], ids=["auto", "alignez"])
    def test_a_job_is_done_once_however_often_its_message_comes(self, bench: Bench, spec: dict[str, Any]) -> None:
        request = bench.request(spec=spec)
        runner = bench.runner()
        assert runner.run(request.job.id) == "succeeded"
        before = (texts_of(bench, request.version.id), stored_vectors(bench, request))
        assert runner.run(request.job.id) == "skipped"
        assert (texts_of(bench, request.version.id), stored_vectors(bench, request)) == before
        assert len(evaluations_of(bench, request)) == 1

    def test_each_text_is_generated_once_and_the_scratch_is_gone_at_the_end(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        seen: list[set[str]] = []
        engine = WatchedEngine(lambda call: seen.append(set(scratch_of(bench, request.job.id))))
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        assert set(engine.rows.values()) == {1}
        assert any(kind.startswith("tune/") for kind in seen[-1])
        assert {"bank", "bare/alone"} <= seen[-1]
        assert any(kind.startswith("edited ") and kind.endswith("/alone") for kind in seen[-1])
        assert scratch_of(bench, request.job.id) == {}
        pairs = texts_of(bench, request.version.id)
        assert {position for position, pair in pairs.items() if pair[2] is not None} == set(range(N + 6))

    def test_the_papers_method_has_characteristics_and_one_representation_a_layer(self, bench: Bench) -> None:
        request = bench.request(spec=ALIGNEZ)
        engine = FakeEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        pairs = texts_of(bench, request.version.id)
        assert {position for position, pair in pairs.items() if pair[0] and pair[1]} == set(range(N))
        assert stored_vectors(bench, request) == (N * engine.info.n_layers, engine.info.n_layers)

    def test_a_message_for_a_job_that_does_not_exist_is_harmless(self, bench: Bench) -> None:
        assert bench.runner().run(bench.caller.tenant_id) == "skipped"

    @pytest.mark.parametrize("spec", [SPEC, ALIGNEZ], ids=["auto", "alignez"])
    def test_two_jobs_with_the_same_spec_give_the_same_version(self, bench: Bench, spec: dict[str, Any]) -> None:
        first, second = bench.request(spec=spec), bench.request(spec=spec)
        for request in (first, second):
            assert bench.runner().run(request.job.id) == "succeeded"
        assert version_of(bench, first).sha256 == version_of(bench, second).sha256

    def test_events_tell_every_stage_in_order(self, bench: Bench) -> None:
        def stages(spec: dict[str, Any]) -> list[str]:
            request = bench.request(spec=spec)
            bench.runner().run(request.job.id)
            with bench.open() as uow:
                events = uow.repository.jobs.events(request.job.id, 0, 200)
            assert events[-1].kind == "succeeded"
            assert all(stage["done"] == stage["total"] for stage in events[-1].payload["progress"].values())
            return list(dict.fromkeys(e.payload["stage"] for e in events if e.kind == "progress"))

        assert stages(SPEC) == ["responses", "fitting", "tuning", "evaluation"]
        assert stages(ALIGNEZ) == ["characteristics", "responses", "readings", "fitting", "evaluation"]

    def test_rows_are_stored_in_several_transactions_and_all_of_them(self, bench: Bench) -> None:
        request = bench.request(spec=ALIGNEZ)
        assert bench.runner(store_rows=5).run(request.job.id) == "succeeded"
        assert stored_vectors(bench, request)[0] == N * 4


class TestServes:
    def test_an_edit_comes_back_bit_by_bit_and_looks_nothing_up(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        engine = FakeEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        with bench.open() as uow:
            active = load_active(uow, request.version.id)
        assert active.fingerprint == engine.info.fingerprint
        assert (active.method, active.lookup, active.prefix, active.steps) == ("distill", "none", None, None)
        assert FitConfig.from_dict(active.config).contrast == 1.0
        [edit] = active.edits
        assert edit.u.shape == edit.v.shape == (len(active.layers), edit.c.shape[1], engine.info.hidden_size)
        assert stored_vectors(bench, request) == (0, len(active.layers))

    def test_neighbours_are_found_with_their_rows(self, bench: Bench) -> None:
        request = bench.request(spec=ALIGNEZ)
        bench.runner().run(request.job.id)
        with bench.open() as uow:
            active = load_active(uow, request.version.id)
            found = nearest_representations(uow, request.version.id, embedding_of(uow, request), 3)
        assert (active.lookup, FitConfig.from_dict(active.config).neighbors) == ("neighbors", 3)
        assert found.layers == active.layers == tuple(range(4))
        assert found.similarities[0] == pytest.approx(1.0, abs=1e-5)

    def test_queries_with_phrases_of_their_own_have_an_edit_per_group_and_vote(self, bench: Bench) -> None:
        queries = [*QUERIES[:6], *({"text": text, "preferred": "formal"} for text in QUERIES[6:])]
        fit = {"method": "distill", "contrast": 1.0, "neighbors": 3, **SMALL}
        request = bench.request(spec={**SPEC, "queries": queries, "fit": fit})
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        with bench.open() as uow:
            active = load_active(uow, request.version.id)
            found = nearest_groups(uow, request.version.id, embedding_of(uow, request), 3)
        assert (active.lookup, len(active.edits)) == ("groups", 2)
        assert found.groups[0] == 0
        assert {query.persona_group for query in queries_of(bench, request)} == {0, 1}
        asked = [str(r.prompt) for batch in engine.batches for r in batch if QUERIES[6] in str(r.prompt)]
        assert any("formal" in prompt for prompt in asked)
        assert not any("You are a cheerful" in prompt for prompt in asked)

    @pytest.mark.parametrize("method", ["prompt", "urial"])
    def test_a_prefix_alone_has_no_edit(self, bench: Bench, method: str) -> None:
        request = bench.request(spec={**SPEC, "fit": {"method": method, **SMALL}})
        assert bench.runner().run(request.job.id) == "succeeded"
        with bench.open() as uow:
            active = load_active(uow, request.version.id)
        assert (active.method, active.edits, active.layers, active.lookup) == (method, (), (), "none")
        assert active.prefix is not None
        assert active.prefix["system"] or active.prefix["examples"]


def embedding_of(uow: Any, request: FitRequest) -> Any:
    embedding = select(FitQueryRow.embedding).where(
        FitQueryRow.version_id == request.version.id, FitQueryRow.embedding.is_not(None)
    )
    return np.asarray(uow.session.scalars(embedding.order_by(FitQueryRow.position).limit(1)).one(), np.float32)


class TestVerdict:
    def test_a_weak_version_is_ready_and_never_the_default_by_itself(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC, promote=True)
        assert bench.runner().run(request.job.id) == "succeeded"
        version = version_of(bench, request)
        [evaluation] = evaluations_of(bench, request)
        assert version.quality == evaluation.quality == "weak"  # the fake model expresses no persona
        assert version.quality_reasons
        assert evaluation.reasons == version.quality_reasons
        assert evaluation.judge == evaluation.report["judge"] == "self"
        assert evaluation.choice is not None
        assert evaluation.choice["trace"]
        with bench.open() as uow:
            assert list_aliases(uow, bench.caller, request.profile.id) == {}
            with pytest.raises(NoDefaultVersion) as caught:
                pick_version(uow, bench.caller, request.profile.id)
        assert list(caught.value.reasons) == version.quality_reasons
        assert caught.value.job_id == request.job.id

    def test_another_judge_is_asked_and_named(self, bench: Bench) -> None:
        judge = FakeJudge()
        request = bench.request(spec={**SPEC, "fit": {**SPEC["fit"], "judge": "openai"}})
        assert bench.runner(make_judge=lambda name: judge).run(request.job.id) == "succeeded"
        [evaluation] = evaluations_of(bench, request)
        assert evaluation.judge == "openai:fake"
        assert evaluation.report["comparisons"]["over_bare"]["net"] > 0
        assert judge.closed


class TestQueries:
    def test_a_persona_alone_is_fitted_and_judged_on_the_bank(self, bench: Bench) -> None:
        request = bench.request(spec={"persona": SPEC["persona"], "fit": {**SPEC["fit"], "answers": 6}})
        engine = loaded()
        assert bench.runner(engine).run(request.job.id) == "succeeded"
        queries = queries_of(bench, request)
        assert {query.source for query in queries} == {QuerySource.BANK}
        assert [query.text for query in queries] == list(engine.query_bank[:12])
        assert Counter(q.split for q in queries) == {QuerySplit.FIT: 6, QuerySplit.TUNE: 2, QuerySplit.HELD_OUT: 4}

    def test_given_queries_are_fitted_on_and_the_banks_are_judged_on(self, bench: Bench) -> None:
        request = bench.request(spec=SPEC)
        bench.runner().run(request.job.id)
        queries = queries_of(bench, request)
        assert [query.text for query in queries[:N]] == QUERIES
        assert {(q.source, q.split) for q in queries[:N]} == {(QuerySource.GIVEN, QuerySplit.FIT)}
        splits = Counter((q.source, q.split) for q in queries[N:])
        assert splits == {(QuerySource.BANK, QuerySplit.TUNE): 2, (QuerySource.BANK, QuerySplit.HELD_OUT): 4}

    @pytest.mark.parametrize(
        ("spec", "bank", "neighbors"),
        [
            ({"queries": QUERIES}, 16, 10),
            ({"queries": QUERIES[:3]}, 16, 3),
            ({"queries": QUERIES[:3], "fit": {"own_queries": 2}}, 16, 5),
            ({"queries": QUERIES[:2], "pairs": [{"query": "Tea?", "preferred": "Yes!", "dispreferred": "No."}]}, 16, 3),
            ({"persona": SPEC["persona"], "fit": {"answers": 6}}, 16, 6),
            ({"queries": QUERIES, "fit": {"neighbors": 2}}, 16, 2),
        ],
        ids=["many", "few", "few and own", "with a pair", "bank", "explicit"],
    )
    def test_an_open_k_is_ten_or_all_there_is_and_the_version_shows_it(
        self, bench: Bench, spec: dict[str, Any], bank: int, neighbors: int
    ) -> None:
        fit = {"method": "alignez", **SMALL, **spec.get("fit", {})}
        request = bench.request(spec={**spec, "fit": fit})
        engine = loaded(WatchedEngine(reply=inventive), default_queries()[:bank])
        assert bench.runner(engine).run(request.job.id) == "succeeded"
        version = version_of(bench, request)
        assert version.fit_config is not None
        assert version.fit_config["neighbors"] == neighbors
        assert version.spec["fit"] == fit

    @pytest.mark.parametrize("call", [1, 3])
    def test_every_attempt_has_the_same_queries_and_the_same_k(self, bench: Bench, call: int) -> None:
        fit = {name: value for name, value in ALIGNEZ["fit"].items() if name != "neighbors"}
        spec = {"queries": QUERIES[:3], "fit": {**fit, "own_queries": 2}}
        request = bench.request(spec=spec)
        with pytest.raises(Killed):
            bench.runner(loaded(WatchedEngine(kill_at(call), reply=inventive))).run(request.job.id)
        before = [(q.text, q.split) for q in queries_of(bench, request)]
        assert len(before) == 3 + 2 + 6
        let_the_lease_run_out(bench, request.job.id)
        other_bank = loaded(WatchedEngine(reply=inventive), default_queries()[20:40])
        assert bench.runner(other_bank).run(request.job.id) == "succeeded"
        assert [(q.text, q.split) for q in queries_of(bench, request)] == before
        assert (version_of(bench, request).fit_config or {})["neighbors"] == 5

    def test_given_pairs_are_stored_and_their_answers_not_generated(self, bench: Bench) -> None:
        pairs = [
            {"query": text, "preferred": f"Gladly, {i}!", "dispreferred": f"No, {i}."} for i, text in enumerate(QUERIES)
        ]
        request = bench.request(spec={"pairs": pairs, "fit": {"method": "caa", **SMALL}})
        engine = WatchedEngine()
        assert bench.runner(loaded(engine)).run(request.job.id) == "succeeded"
        asked = {str(r.prompt) for batch in engine.batches for r in batch}
        assert not any(text in prompt for text in QUERIES for prompt in asked)
        assert {query.source for query in queries_of(bench, request)[:N]} == {QuerySource.PAIR}
        texts = texts_of(bench, request.version.id)
        assert [texts[i][2:] for i in range(N)] == [(p["preferred"], p["dispreferred"]) for p in pairs]

    def test_a_query_that_the_context_does_not_hold_is_dropped_with_its_reason(self, bench: Bench) -> None:
        queries = [*QUERIES[:8], "on and " * 300]
        request = bench.request(spec={**SPEC, "queries": queries})
        assert bench.runner().run(request.job.id) == "succeeded"
        with bench.open() as uow:
            dropped = {at: pair.dropped for at, pair in uow.repository.fits.pairs(request.version.id) if pair.dropped}
        assert list(dropped) == [8]
        assert "leave no room" in str(dropped[8])
        assert queries_of(bench, request)[8].split is QuerySplit.UNUSED


def inventive(request: GenerationRequest) -> str:
    """A model that invents a query wherever it is asked."""
    return f"What about question {request.seed}?\nNext"
