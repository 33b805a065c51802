"""One worker at a time owns a job; what it finished survives it; a job ends once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from profiles.errors import JobCancelled, JobFinished, LeaseLost
from profiles.fitting import claims as jobs
from profiles.fitting.claims import Claim
from profiles.fitting.content import (
    load_queries,
    load_texts,
    save_embeddings,
    save_queries,
    save_texts,
)
from profiles.fitting.publishing import publish, publish_evaluation
from profiles.fitting.request import request_fit
from profiles.models import (
    FitQueryRow,
    Job,
    JobStatus,
    OutboxMessage,
    VersionState,
)
from profiles.repository import Repository
from profiles.service import (
    cancel_job,
    delete_profile,
    get_job,
    job_events,
    list_jobs,
)
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.conftest import all_rows
from tests.factories import Factory, fitted, make_content, publish_content, query_row, save_content

EXPIRED = -1.0  #: a lease that ends before it begins


def queued_job(sessions: SessionFactory) -> UUID:
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        make = Factory(uow)
        return make.fit(make.caller()).job.id


def lease_left_s(uow: UnitOfWork, job_id: UUID) -> float:
    """Seconds, by the database's clock."""
    left = select(func.extract("epoch", Job.lease_until - func.clock_timestamp())).where(Job.id == job_id)
    return float(uow.session.scalars(left).one())


def kinds(uow: UnitOfWork, job_id: UUID) -> list[str]:
    return [event.kind for event in uow.repository.jobs.events(job_id, 0, 100)]


class TestClaim:
    def test_one_of_many_workers_gets_the_job(self, committed: SessionFactory) -> None:
        job_id = queued_job(committed)
        start = threading.Barrier(8)

        def take(worker: int) -> jobs.Claim | None:
            start.wait()
            with UnitOfWork.open(committed, PLATFORM) as uow:
                return jobs.claim(uow, job_id, f"worker-{worker}", 60.0)

        with ThreadPoolExecutor(8) as pool:
            claims = [claim for claim in pool.map(take, range(8)) if claim is not None]
        assert [claim.attempt for claim in claims] == [1]

    @pytest.mark.parametrize("first_commits", [True, False])
    def test_the_second_waits_for_the_first_ones_transaction(
        self, committed: SessionFactory, first_commits: bool
    ) -> None:
        job_id = queued_job(committed)

        def take() -> jobs.Claim | None:
            with UnitOfWork.open(committed, PLATFORM) as uow:
                return jobs.claim(uow, job_id, "second", 60.0)

        with ThreadPoolExecutor(1) as pool, all_rows(committed) as session:
            transaction = session.get_transaction() or pytest.fail("there is none")
            assert Repository(session).jobs.claim(job_id, "first", 60.0)
            second = pool.submit(take)
            wait_until_blocked(committed)
            if first_commits:
                transaction.commit()
            else:
                transaction.rollback()
            claim = second.result(timeout=10)
        assert (claim is None) is first_commits

    def test_a_running_job_is_not_claimed_again(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        make.claimed(request)
        assert jobs.claim(uow, request.job.id, "worker-2", 60.0) is None

    def test_a_finished_or_unknown_job_is_not_claimed(self, uow: UnitOfWork, make: Factory) -> None:
        assert jobs.claim(uow, make.ready(make.caller()).job.id, "worker-2", 60.0) is None
        assert jobs.claim(uow, UUID(int=1), "worker-2", 60.0) is None

    def test_a_job_is_not_claimed_before_its_pause_is_over(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        jobs.fail(uow, make.claimed(request), "out_of_memory", "no memory", retryable=True)
        assert jobs.claim(uow, request.job.id, "worker-2", 60.0) is None
        uow.session.execute(update(Job).values(run_after=func.clock_timestamp() - timedelta(seconds=1)))
        assert jobs.claim(uow, request.job.id, "worker-2", 60.0) is not None

    def test_a_claim_carries_the_spec_and_counts_attempts(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        first = make.claimed(request)
        jobs.hand_back(uow, first)
        second = make.claimed(request)
        assert (first.attempt, second.attempt) == (1, 2)
        assert second.spec == request.version.spec
        assert second.version_id == request.version.id


class TestLease:
    def test_a_heartbeat_extends_it(self, uow: UnitOfWork, make: Factory) -> None:
        claim = make.claimed(make.fit(make.caller()), lease_s=5.0)
        assert lease_left_s(uow, claim.job_id) <= 5.0
        assert jobs.heartbeat(uow, claim, 60.0) is False
        assert 50.0 < lease_left_s(uow, claim.job_id) <= 60.0

    def test_a_heartbeat_brings_the_news_of_a_cancel(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        claim = make.claimed(make.fit(caller))
        cancel_job(uow, caller, claim.job_id)
        assert jobs.heartbeat(uow, claim, 60.0) is True

    def test_a_lease_that_holds_is_left_alone_by_the_sweep(self, uow: UnitOfWork, make: Factory) -> None:
        claim = make.claimed(make.fit(make.caller()))
        assert jobs.sweep(uow, 20.0)[0] == 0
        assert jobs.heartbeat(uow, claim, 60.0) is False

    @pytest.mark.parametrize(
        "write",
        [
            lambda uow, claim: jobs.heartbeat(uow, claim, 60.0),
            lambda uow, claim: jobs.bind_model(uow, claim, Factory(uow).base_model()),
            lambda uow, claim: save_queries(uow, claim, [query_row(99)]),
            lambda uow, claim: save_texts(uow, claim, "help_response", {0: "late"}),
            lambda uow, claim: save_texts(uow, claim, "bare/alone", {0: "late"}),
            lambda uow, claim: save_embeddings(uow, claim, [0], make_content(seed=9).embeddings[:1]),
            lambda uow, claim: save_content(uow, claim, make_content(seed=9)),
            lambda uow, claim: jobs.record_progress(uow, claim, "responses", 1, 2),
            lambda uow, claim: publish(uow, claim, fitted(make_content())),
            lambda uow, claim: publish_evaluation(uow, claim, fitted(make_content()).verdict),
            lambda uow, claim: jobs.fail(uow, claim, "late", "late"),
            lambda uow, claim: jobs.acknowledge_cancel(uow, claim),
            lambda uow, claim: jobs.hand_back(uow, claim),
        ],
        ids=[
            "heartbeat", "bind_model", "save_queries", "save_texts", "save_scratch", "save_embeddings",
            "save_representations", "record_progress", "publish", "publish_evaluation", "fail",
            "acknowledge_cancel", "hand_back",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("successor", ["running", "finished"])
    def test_a_worker_thought_dead_can_write_nothing(
        self, uow: UnitOfWork, make: Factory, write: Callable[[UnitOfWork, Claim], object], successor: str
    ) -> None:
        request = make.fit(make.caller())
        old = make.claimed(request, lease_s=EXPIRED)
        jobs.bind_model(uow, old, make.base_model())
        save_content(uow, old, make_content())
        assert jobs.sweep(uow, 20.0)[0] == 1
        new = make.claimed(request)
        if successor == "finished":
            publish(uow, new, fitted(make_content()))
        with pytest.raises(LeaseLost) as caught:
            write(uow, old)
        assert (caught.value.job_id, caught.value.attempt) == (old.job_id, 1)
        assert len(load_queries(uow, new)) == 12
        assert all("late" not in texts.values() for texts in load_texts(uow, new).values())

    def test_an_expired_lease_that_nobody_took_over_still_counts(self, uow: UnitOfWork, make: Factory) -> None:
        claim = make.claimed(make.fit(make.caller()), lease_s=EXPIRED)
        assert jobs.heartbeat(uow, claim, 60.0) is False
        assert jobs.sweep(uow, 20.0)[0] == 0


class TestFail:
    def test_ends_job_and_version_with_a_code(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        assert jobs.fail(uow, make.claimed(request), "degenerate_directions", "nothing to learn") is False
        uow.session.refresh(request.version)
        assert request.job.status is JobStatus.FAILED
        assert (request.job.error_code, request.job.error_message) == ("degenerate_directions", "nothing to learn")
        assert request.version.state is VersionState.FAILED
        assert kinds(uow, request.job.id)[-1] == "failed"

    def test_a_passing_error_is_tried_again_a_bounded_number_of_times(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        pauses = []
        for _ in range(2):
            claim = make.claimed(request)
            assert jobs.fail(uow, claim, "out_of_memory", "no memory", retryable=True, max_failures=3) is True
            assert request.job.status is JobStatus.QUEUED
            pause = select(func.extract("epoch", Job.run_after - func.clock_timestamp()))
            pauses.append(float(uow.session.scalars(pause).one()))
            uow.session.execute(update(Job).values(run_after=None))
        assert jobs.fail(uow, make.claimed(request), "out_of_memory", "x", retryable=True, max_failures=3) is False
        assert request.job.status is JobStatus.FAILED
        assert pauses[1] > 1.5 * pauses[0] > 1.5

    def test_while_it_waits_the_job_shows_the_last_error(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        jobs.fail(uow, make.claimed(request), "out_of_memory", "no memory", retryable=True)
        assert request.job.error_code == "out_of_memory"
        events = uow.repository.jobs.events(request.job.id, 0, 100)
        assert [event.kind for event in events] == ["queued", "running", "retry", "queued"]
        assert events[2].payload["error"] == {"code": "out_of_memory", "message": "no memory"}

    def test_success_clears_the_error_of_an_attempt_before(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        jobs.fail(uow, make.claimed(request), "out_of_memory", "no memory", retryable=True)
        uow.session.execute(update(Job).values(run_after=None))
        claim = make.claimed(request)
        jobs.bind_model(uow, claim, make.base_model())
        publish_content(uow, claim, make_content())
        assert (request.job.status, request.job.error_code) == (JobStatus.SUCCEEDED, None)

    def test_a_job_to_be_cancelled_is_not_tried_again(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        claim = make.claimed(make.fit(caller))
        cancel_job(uow, caller, claim.job_id)
        assert jobs.fail(uow, claim, "out_of_memory", "no memory", retryable=True) is False

    def test_long_codes_and_messages_fit_their_columns(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        jobs.fail(uow, make.claimed(request), "c" * 100, "m\x00" * 5000)
        assert len(request.job.error_code or "") == 64
        assert len(request.job.error_message or "") == 2000


class TestSweep:
    def test_a_lost_worker_costs_a_failure_and_no_pause(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        make.claimed(request, lease_s=EXPIRED)
        assert jobs.sweep(uow, 20.0)[0] == 1
        assert (request.job.status, request.job.failures, request.job.error_code) == ("queued", 1, "worker_lost")
        assert make.claimed(request).attempt == 2

    def test_a_job_that_kills_its_workers_fails_in_the_end(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        for _ in range(3):
            make.claimed(request, lease_s=EXPIRED)
            jobs.sweep(uow, 20.0, max_failures=3)
        assert (request.job.status, request.job.error_code) == (JobStatus.FAILED, "worker_lost")
        uow.session.refresh(request.version)
        assert request.version.state is VersionState.FAILED

    def test_a_cancel_that_no_worker_lived_to_see_is_carried_out(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        request = make.fit(caller)
        make.claimed(request, lease_s=EXPIRED)
        cancel_job(uow, caller, request.job.id)
        jobs.sweep(uow, 20.0)
        assert request.job.status is JobStatus.CANCELLED


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        request = make.fit(caller)
        assert cancel_job(uow, caller, request.job.id).status is JobStatus.CANCELLED
        assert uow.session.scalars(select(OutboxMessage)).all() == []
        assert jobs.claim(uow, request.job.id, "worker-1", 60.0) is None
        uow.session.refresh(request.version)
        assert request.version.state is VersionState.FAILED

    def test_a_running_job_is_asked_to_stop_and_its_worker_agrees(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        claim = make.claimed(make.fit(caller))
        asked = cancel_job(uow, caller, claim.job_id)
        assert asked.status is JobStatus.RUNNING
        assert asked.cancel_requested_at is not None
        with pytest.raises(JobCancelled):
            jobs.record_progress(uow, claim, "responses", 1, 2)
        jobs.acknowledge_cancel(uow, claim)
        assert get_job(uow, caller, claim.job_id).status is JobStatus.CANCELLED

    def test_asking_twice_is_the_same(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        claim = make.claimed(make.fit(caller))
        first = cancel_job(uow, caller, claim.job_id).cancel_requested_at
        assert cancel_job(uow, caller, claim.job_id).cancel_requested_at == first
        jobs.acknowledge_cancel(uow, claim)
        assert cancel_job(uow, caller, claim.job_id).status is JobStatus.CANCELLED

    def test_a_job_that_has_ended_cannot_be_cancelled(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        with pytest.raises(JobFinished, match="succeeded"):
            cancel_job(uow, caller, make.ready(caller).job.id)


class TestHandBack:
    def test_queues_the_job_at_once_and_is_no_failure(self, uow: UnitOfWork, make: Factory) -> None:
        request = make.fit(make.caller())
        claim = make.claimed(request)
        uow.repository.jobs.sent({m.id: m.job_id for m in uow.repository.jobs.take_messages(10)})
        jobs.hand_back(uow, claim)
        assert (request.job.status, request.job.failures) == (JobStatus.QUEUED, 0)
        assert uow.session.scalars(select(OutboxMessage.job_id)).all() == [request.job.id]

    def test_a_job_to_be_cancelled_is_cancelled_instead(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        request = make.fit(caller)
        claim = make.claimed(request)
        cancel_job(uow, caller, request.job.id)
        jobs.hand_back(uow, claim)
        assert request.job.status is JobStatus.CANCELLED


class TestEvents:
    def test_fast_progress_leaves_few_events_and_its_ends(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        claim = make.claimed(make.fit(caller))
        for stage in ("characteristics", "responses"):
            for done in range(101):
                jobs.record_progress(uow, claim, stage, done, 100)
        seen = [e.payload for e in job_events(uow, caller, claim.job_id) if e.kind == "progress"]
        assert 4 <= len(seen) <= 50  # of 202
        ends = [(p["stage"], p["progress"][p["stage"]]["done"]) for p in seen]
        assert {("characteristics", 0), ("characteristics", 100), ("responses", 0), ("responses", 100)} <= set(ends)
        assert get_job(uow, caller, claim.job_id).progress == {
            "characteristics": {"done": 100, "total": 100},
            "responses": {"done": 100, "total": 100},
        }

    def test_progress_never_goes_back_and_ids_ascend(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        claim = make.claimed(make.fit(caller))
        for done in range(20):
            jobs.record_progress(uow, claim, "responses", done, 19)
            uow.session.execute(update(Job).values(event_at=None))  # time passes
        events = job_events(uow, caller, claim.job_id)
        assert [e.id for e in events] == sorted({e.id for e in events})
        progress = [e.payload["progress"]["responses"]["done"] for e in events if e.kind == "progress"]
        assert progress == list(range(20))

    def test_a_watcher_goes_on_after_the_last_event_it_saw(self, uow: UnitOfWork, make: Factory) -> None:
        caller = make.caller()
        job_id = make.ready(caller).job.id
        everything = job_events(uow, caller, job_id)
        assert [e.id for e in job_events(uow, caller, job_id, everything[0].id)] == [e.id for e in everything[1:]]
        assert job_events(uow, caller, job_id, everything[-1].id) == []
        assert job_events(uow, caller, job_id, 2**70) == []
        assert len(job_events(uow, caller, job_id, -5)) == len(everything)
        assert len(job_events(uow, caller, job_id, 0, 2)) == 2


def test_jobs_are_listed_newest_first_and_by_status(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller()
    done = make.ready(caller).job.id
    waiting = make.fit(caller).job.id
    assert [job.id for job in list_jobs(uow, caller).rows] == [waiting, done]
    assert [job.id for job in list_jobs(uow, caller, status="succeeded").rows] == [done]


def test_deleting_a_profile_ends_its_jobs(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller()
    waiting = make.fit(caller)
    running = request_fit(uow, caller, {}, profile=waiting.profile.id)
    make.claimed(running)
    delete_profile(uow, caller, waiting.profile.id)
    for made in (waiting, running):
        uow.session.refresh(made.job)
    assert waiting.job.status is JobStatus.CANCELLED
    assert running.job.cancel_requested_at is not None
    assert uow.session.scalars(select(func.count()).select_from(FitQueryRow)).one() == 0


def wait_until_blocked(sessions: SessionFactory) -> None:
    """Until some session of this database waits for a lock of another one."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    for _ in range(1000):
        with all_rows(sessions) as session:
            if session.scalars(waiting).one():
                return
        threading.Event().wait(0.005)
    raise AssertionError("nobody waits for a lock")
