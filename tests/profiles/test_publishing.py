"""Content that a running fit stores, and the version that it publishes."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import func, select, update

from profiles.errors import Conflict, JobCancelled, ModelConflict, NotFound
from profiles.fitting import claims as jobs
from profiles.fitting.content import (
    load_queries,
    load_texts,
    save_queries,
    save_texts,
)
from profiles.fitting.evaluations import latest_evaluation
from profiles.fitting.publishing import publish
from profiles.models import (
    Job,
    JobStatus,
    PreferencePairRow,
    QuerySource,
    QuerySplit,
    VersionState,
)
from profiles.service import (
    cancel_job,
    delete_profile,
    list_aliases,
    load_active,
    usage_since,
)
from profiles.uow import UnitOfWork
from tests.factories import REPORT, Factory, fitted, make_content, query_row, save_content

EXPIRED = -1.0  #: a lease that ends before it begins


class TestTexts:
    def test_saving_texts_twice_changes_nothing(self, uow: UnitOfWork, make: Factory) -> None:
        claim = self.with_queries(uow, make, 3)
        for _ in range(2):
            save_texts(uow, claim, "help_characteristics", {0: "kind", 2: "brief"})
            save_texts(uow, claim, "edited/alone", {1_000_003: "an answer"})
        assert load_texts(uow, claim) == {
            "help_characteristics": {0: "kind", 2: "brief"}, "edited/alone": {1_000_003: "an answer"},
        }  # fmt: skip
        assert uow.session.scalars(select(func.count()).select_from(PreferencePairRow)).one() == 2

    def test_the_next_attempt_finds_what_the_last_one_finished(self, uow: UnitOfWork, make: Factory) -> None:
        first = self.with_queries(uow, make, 4, lease_s=EXPIRED)
        save_texts(uow, first, "help_characteristics", {0: "a", 1: "b"})
        save_texts(uow, first, "help_characteristics", {2: "e"})
        save_texts(uow, first, "harm_response", {1: "h"})
        save_texts(uow, first, "tune/4 layers, λ 1/long", {3: "x"})
        jobs.sweep(uow, 20.0)
        second = jobs.claim(uow, first.job_id, "worker-2", 60.0)
        assert second is not None
        assert load_texts(uow, second) == {
            "help_characteristics": {0: "a", 1: "b", 2: "e"},
            "harm_response": {1: "h"},
            "tune/4 layers, λ 1/long": {3: "x"},
        }

    @pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "cancelled by the sweep"])
    def test_scratch_goes_when_the_job_ends_and_the_versions_texts_stay(
        self, uow: UnitOfWork, make: Factory, end: str
    ) -> None:
        claim = self.with_queries(uow, make, 1, lease_s=EXPIRED)
        for kind in ("help_response", "bare/alone", "bank"):
            save_texts(uow, claim, kind, {0: "text"})
        jobs.fail(uow, claim, "out_of_memory", "no memory", retryable=True)  # to be tried again: all stays
        uow.session.execute(update(Job).values(run_after=None))
        again = jobs.claim(uow, claim.job_id, "worker-2", EXPIRED)
        assert again is not None
        assert set(load_texts(uow, again)) == {"help_response", "bare/alone", "bank"}
        if end == "succeeded":
            jobs.bind_model(uow, again, make.base_model())
            publish(uow, again, fitted(make_content(rows=False)))
        elif end == "failed":
            jobs.fail(uow, again, "internal_error", "no")
        else:
            uow.session.execute(update(Job).values(cancel_requested_at=func.now()))
            if end == "cancelled":
                jobs.acknowledge_cancel(uow, again)
            else:
                jobs.sweep(uow, 20.0)
        assert load_texts(uow, again) == {"help_response": {0: "text"}}

    def test_a_position_keeps_its_first_query_and_gets_its_split(self, uow: UnitOfWork, make: Factory) -> None:
        claim = self.with_queries(uow, make, 2)
        late = query_row(1, text="another", source=QuerySource.INVENTED, split=QuerySplit.TUNE, persona_group=3)
        save_queries(uow, claim, [late])
        first, second = load_queries(uow, claim)
        assert (first.text, second.text) == ("query 0", "query 1")
        assert (first.split, second.split, second.persona_group) == (QuerySplit.FIT, QuerySplit.TUNE, 3)

    def test_an_answer_for_an_unknown_query_is_refused(self, uow: UnitOfWork, make: Factory) -> None:
        claim = self.with_queries(uow, make, 2)
        with pytest.raises(NotFound, match="7"):
            save_texts(uow, claim, "help_response", {0: "a", 7: "b"})
        assert load_texts(uow, claim) == {}

    @pytest.mark.parametrize("kind", ["help_response", "bare/alone"])
    def test_what_a_model_may_say_and_postgres_not_hold_is_replaced(
        self, uow: UnitOfWork, make: Factory, kind: str
    ) -> None:
        claim = self.with_queries(uow, make, 2)
        save_texts(uow, claim, kind, {0: "a\x00b", 1: "c\ud800d"})
        assert load_texts(uow, claim) == {kind: {0: "a\ufffdb", 1: "c?d"}}

    @staticmethod
    def with_queries(uow: UnitOfWork, make: Factory, count: int, lease_s: float = 60.0) -> jobs.Claim:
        claim = make.claimed(make.fit(make.caller()), lease_s)
        save_queries(uow, claim, [query_row(i) for i in range(count)])
        return claim


class TestPublish:
    def test_makes_the_version_ready_and_the_default(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        request = make.ready(caller)
        assert request.version.state is VersionState.READY
        assert request.version.sha256 == "ab" * 32
        assert request.job.status is JobStatus.SUCCEEDED
        assert request.job.finished_at is not None
        assert list_aliases(uow, caller, request.profile.id) == {"default": {1: 1.0}}
        told = [event.kind for event in uow.repository.jobs.events(request.job.id, 0, 100)]
        assert told == ["queued", "running", "succeeded"]

    def test_what_was_published_is_what_is_loaded(self, uow: UnitOfWork, make: Factory) -> None:
        content = make_content()
        active = load_active(uow, make.ready(make.caller(), content=content).version.id)
        assert (active.layers, active.method, active.lookup) == (content.layers, "alignez", "neighbors")
        assert (active.steps, active.positions, active.prefix) == (None, "answer", None)
        [edit] = active.edits
        for name in ("u", "v", "c"):
            np.testing.assert_array_equal(getattr(edit, name), getattr(content.edits[0], name))

    def test_every_group_has_its_edit(self, uow: UnitOfWork, make: Factory) -> None:
        content = make_content(groups=3)
        active = load_active(uow, make.ready(make.caller(), content=content).version.id)
        assert active.lookup == "groups"
        assert len(active.edits) == 3
        for stored, given in zip(active.edits, content.edits, strict=True):
            np.testing.assert_array_equal(stored.u, given.u)

    def test_a_prefix_alone_has_no_edit(self, uow: UnitOfWork, make: Factory) -> None:
        prefix = {"system": "Be kind.", "examples": [["Hi", "Hello!"]]}
        changes = {"prefix": prefix, "edits": (), "layers": (), "method": "prompt"}
        request = make.ready(make.caller(), content=make_content(rows=False), changes=changes)
        active = load_active(uow, request.version.id)
        assert (active.method, active.layers, active.edits, active.prefix) == ("prompt", (), (), prefix)

    def test_writes_one_evaluation(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        choice = {"chosen": "4 layers", "trace": [{"net": float("nan")}]}
        request = make.ready(caller, changes={"choice": choice, "quality": "weak", "reasons": ("no",)})
        found = latest_evaluation(uow, caller, request.profile.id, 1)
        assert (found.job_id, found.judge, found.quality, found.reasons) == (request.job.id, "self", "weak", ["no"])
        assert found.report == REPORT
        assert found.choice == {"chosen": "4 layers", "trace": [{"net": None}]}

    def test_a_later_version_becomes_the_default_only_if_asked_to(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        profile = make.ready(caller).profile.id
        make.ready(caller, profile=profile)
        assert list_aliases(uow, caller, profile) == {"default": {1: 1.0}}
        make.ready(caller, profile=profile, promote=True)
        assert list_aliases(uow, caller, profile) == {"default": {3: 1.0}}

    def test_fails_when_vectors_are_missing(self, uow: UnitOfWork, make: Factory) -> None:
        for content in (make_content(), make_content(groups=2)):
            claim = make.claimed(make.fit(make.caller()))
            jobs.bind_model(uow, claim, make.base_model())
            save_content(uow, claim, content)
            with pytest.raises(Conflict, match="12 of 13"):
                publish(uow, claim, fitted(content, looked_up=13))

    def test_a_query_may_be_dropped_with_its_reason(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        claim = make.claimed(request)
        jobs.bind_model(uow, claim, make.base_model())
        save_content(uow, claim, make_content())
        save_queries(uow, claim, [query_row(12)])
        publish(uow, claim, fitted(make_content(), dropped={12: "no room"}))
        pairs = dict(uow.repository.fits.pairs(request.version.id))
        assert pairs[12].dropped == "no room"
        assert pairs[0].dropped is None
        assert load_queries(uow, claim)[12].split is QuerySplit.UNUSED

    def test_the_tokens_of_all_attempts_are_counted(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        request = make.fit(caller)
        first = make.claimed(request)
        jobs.count_tokens(uow, first, 60)
        jobs.hand_back(uow, first)
        second = make.claimed(request)
        jobs.count_tokens(uow, second, 30)
        jobs.count_tokens(uow, first, 10)  # it ended its chunk after the lease was lost
        jobs.count_tokens(uow, second, 0)
        [usage] = usage_since(uow, caller.tenant_id, request.job.created_at.date() - timedelta(days=1)).rows
        assert (usage.profile_id, usage.fit_tokens, usage.requests) == (request.profile.id, 100, 0)

    def test_numbers_that_json_does_not_have_become_null(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        claim = make.claimed(request)
        jobs.bind_model(uow, claim, make.base_model())
        save_content(uow, claim, make_content())
        publish(uow, claim, fitted(make_content(), diagnostics={"a": [float("nan"), 1.0], "b": float("inf")}))
        uow.session.refresh(request.version)
        assert request.version.diagnostics == {"a": [None, 1.0], "b": None}

    def test_cancelled_or_deleted_meanwhile_is_not_published(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        for stop in (
            lambda request: cancel_job(uow, caller, request.job.id),
            lambda request: delete_profile(uow, caller, request.profile.id),
        ):
            request = make.fit(caller)
            claim = make.claimed(request)
            jobs.bind_model(uow, claim, make.base_model())
            save_content(uow, claim, make_content())
            stop(request)
            with pytest.raises(JobCancelled):
                publish(uow, claim, fitted(make_content()))

    def test_another_base_model_than_the_profiles_is_refused(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        profile = make.ready(caller).profile.id
        claim = make.claimed(make.fit(caller, profile=profile))
        with pytest.raises(ModelConflict, match=r"nano .*other "):
            jobs.bind_model(uow, claim, make.base_model("other"))
