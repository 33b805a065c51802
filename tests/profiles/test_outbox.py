"""A message leaves with its transaction or not at all, is sent until the broker confirms, and is sent again if lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import func, select, update

from profiles.delivery.outbox import JobQueue, Relay, RelayOptions, relay_once
from profiles.errors import BrokerUnavailable
from profiles.fitting import claims as jobs
from profiles.models import Job, JobStatus, OutboxMessage
from profiles.repository.jobs import Backlog
from profiles.service import cancel_job
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from telemetry.tracing import Origin, TracingSettings, start_tracing
from tests.conftest import all_rows
from tests.factories import Factory
from tests.fakes import InMemoryQueue

RESEND_S = 20.0
Start = Callable[..., Relay]


def ask(sessions: SessionFactory, count: int = 1) -> list[UUID]:
    """Queued jobs of one tenant."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        make = Factory(uow)
        caller = make.caller()
        return [make.fit(caller).job.id for _ in range(count)]


def waiting(sessions: SessionFactory) -> list[UUID]:
    with all_rows(sessions) as session:
        return list(session.scalars(select(OutboxMessage.job_id).order_by(OutboxMessage.id)))


def job_of(sessions: SessionFactory, job_id: UUID) -> Job:
    with all_rows(sessions) as session:
        return session.get_one(Job, job_id)


def pass_time(sessions: SessionFactory, seconds: float) -> None:
    """As far as the jobs can tell."""
    with all_rows(sessions) as session:
        ago = timedelta(seconds=seconds)
        session.execute(update(Job).values(sent_at=Job.sent_at - ago, lease_until=Job.lease_until - ago))


def sweep(sessions: SessionFactory, **options: int) -> tuple[int, int]:
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        return jobs.sweep(uow, RESEND_S, **options)


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class GatedQueue(InMemoryQueue):
    """Stops in the middle of publishing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()

    def publish(self, job_ids: Sequence[UUID]) -> list[UUID]:
        self.entered.set()
        assert self.gate.wait(10)
        return super().publish(job_ids)


class Notes:
    """A `RelayObserver` that remembers."""

    def __init__(self) -> None:
        self.messages = 0
        self.away = 0
        self.backlogs: list[Backlog] = []

    def sent(self, messages: int) -> None:
        self.messages += messages

    def swept(self, leases_ended: int, resent: int, backlog: Backlog) -> None:
        self.backlogs.append(backlog)

    def unavailable(self) -> None:
        self.away += 1


def test_the_backlog_counts_what_waits_and_how_long(committed: SessionFactory) -> None:
    def backlog() -> Backlog:
        with UnitOfWork.open(committed, PLATFORM) as uow:
            return uow.repository.jobs.backlog()

    assert backlog() == Backlog(0, 0.0, 0, 0.0, 0)
    first, *_ = ask(committed, 3)
    with all_rows(committed) as session:
        ago = timedelta(seconds=100)
        session.execute(update(Job).where(Job.id == first).values(created_at=Job.created_at - ago))
        session.execute(
            update(OutboxMessage).where(OutboxMessage.job_id == first).values(created_at=OutboxMessage.created_at - ago)
        )
    found = backlog()
    assert (found.messages, found.queued, found.running) == (3, 3, 0)
    assert 100 <= found.oldest_due_s < 160
    assert 100 <= found.oldest_message_s < 160
    relay_once(committed, InMemoryQueue())
    with UnitOfWork.open(committed, PLATFORM) as uow:
        assert jobs.claim(uow, first, "worker", 30.0) is not None
    found = backlog()
    assert (found.messages, found.oldest_message_s, found.queued, found.running) == (0, 0.0, 2, 1)
    assert found.oldest_due_s < 60
    with all_rows(committed) as session:  # neither is due
        session.execute(update(Job).where(Job.status == "queued").values(run_after=func.now() + timedelta(hours=1)))
    assert backlog().oldest_due_s == 0.0


def test_the_in_memory_queue_is_a_job_queue() -> None:
    queue: JobQueue = InMemoryQueue()
    queue.close()


class TestRequest:
    def test_a_job_and_its_message_are_one_transaction(self, committed: SessionFactory) -> None:
        [job_id] = ask(committed)
        assert waiting(committed) == [job_id]

    def test_a_rolled_back_request_leaves_neither(self, committed: SessionFactory) -> None:
        def ask_and_fail() -> None:
            with UnitOfWork.open(committed, PLATFORM) as uow:
                make = Factory(uow)
                make.fit(make.caller())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ask_and_fail()
        assert waiting(committed) == []
        with all_rows(committed) as session:
            assert session.scalars(select(func.count()).select_from(Job)).one() == 0

    def test_nothing_is_sent_before_the_commit(self, committed: SessionFactory) -> None:
        queue = InMemoryQueue()
        with UnitOfWork.open(committed, PLATFORM) as uow:
            make = Factory(uow)
            make.fit(make.caller())
            assert relay_once(committed, queue) == 0
        assert relay_once(committed, queue) == 1


class TestRelayOnce:
    def test_sends_each_message_once_in_order(self, committed: SessionFactory) -> None:
        ids, queue = ask(committed, 3), InMemoryQueue()
        assert relay_once(committed, queue) == 3
        assert relay_once(committed, queue) == 0
        assert queue.published == ids
        assert waiting(committed) == []

    def test_notes_on_the_job_that_it_was_sent(self, committed: SessionFactory) -> None:
        [job_id] = ask(committed)
        assert job_of(committed, job_id).sent_at is None
        relay_once(committed, InMemoryQueue())
        job = job_of(committed, job_id)
        assert job.sent_at is not None
        assert (job.sends, job.status) == (1, JobStatus.QUEUED)

    def test_a_broker_that_is_away_loses_nothing(self, committed: SessionFactory) -> None:
        [job_id], queue = ask(committed), InMemoryQueue()
        queue.away = True
        with pytest.raises(BrokerUnavailable):
            relay_once(committed, queue)
        assert waiting(committed) == [job_id]
        assert job_of(committed, job_id).sent_at is None
        queue.away = False
        assert relay_once(committed, queue) == 1
        assert queue.published == [job_id]

    def test_what_was_not_confirmed_stays(self, committed: SessionFactory) -> None:
        ids, queue = ask(committed, 3), InMemoryQueue()
        queue.confirm_at_most = 2
        assert relay_once(committed, queue) == 2
        assert waiting(committed) == ids[2:]
        assert relay_once(committed, queue) == 1
        assert queue.published == ids

    def test_two_relays_never_hold_the_same_message(self, committed: SessionFactory) -> None:
        ids, first, second = ask(committed, 3), GatedQueue(), InMemoryQueue()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(relay_once, committed, first)
            assert first.entered.wait(10)
            assert relay_once(committed, second) == 0  # at once, and empty-handed
            [late] = ask(committed)
            assert relay_once(committed, second) == 1
            first.gate.set()
            assert running.result(timeout=10) == 3
        assert first.published == ids
        assert second.published == [late]

    def test_a_relay_killed_after_sending_sends_again_rather_than_not_at_all(self, committed: SessionFactory) -> None:
        [job_id] = ask(committed)

        class Killed(BaseException):
            pass

        class DyingQueue(InMemoryQueue):
            def publish(self, job_ids: Sequence[UUID]) -> list[UUID]:
                super().publish(job_ids)
                raise Killed

        dying, queue = DyingQueue(), InMemoryQueue()
        with pytest.raises(Killed):
            relay_once(committed, dying)
        assert relay_once(committed, queue) == 1
        assert dying.published == queue.published == [job_id]

    def test_a_cancelled_jobs_message_is_not_sent(self, committed: SessionFactory) -> None:
        with UnitOfWork.open(committed, PLATFORM) as uow:
            make = Factory(uow)
            caller = make.caller()
            job_id = make.fit(caller).job.id
        with UnitOfWork.open(committed, PLATFORM) as uow:
            cancel_job(uow, caller, job_id)
        assert relay_once(committed, InMemoryQueue()) == 0


class TestSweep:
    def test_a_job_that_nobody_took_is_sent_again(self, committed: SessionFactory) -> None:
        [job_id], queue = ask(committed), InMemoryQueue()
        relay_once(committed, queue)
        assert sweep(committed) == (0, 0)
        pass_time(committed, RESEND_S + 1)
        assert sweep(committed) == (0, 1)
        relay_once(committed, queue)
        assert queue.published == [job_id, job_id]

    def test_the_pause_between_sends_doubles(self, committed: SessionFactory) -> None:
        ask(committed)
        queue = InMemoryQueue()
        for sends in range(1, 4):
            relay_once(committed, queue)
            pause = RESEND_S * 2 ** (sends - 1)
            pass_time(committed, pause - 1)
            assert sweep(committed) == (0, 0)
            pass_time(committed, 2)
            assert sweep(committed) == (0, 1)

    def test_an_emptied_outbox_is_filled_again(self, committed: SessionFactory) -> None:
        [job_id] = ask(committed)
        with all_rows(committed) as session:
            session.query(OutboxMessage).delete()
        assert sweep(committed) == (0, 1)
        assert waiting(committed) == [job_id]

    def test_a_message_that_waits_is_not_doubled(self, committed: SessionFactory) -> None:
        ask(committed)
        assert sweep(committed) == (0, 0)
        assert len(waiting(committed)) == 1

    def test_a_lost_workers_job_is_queued_and_sent_at_once(self, committed: SessionFactory) -> None:
        [job_id], queue = ask(committed), InMemoryQueue()
        relay_once(committed, queue)
        with UnitOfWork.open(committed, PLATFORM) as uow:
            assert jobs.claim(uow, job_id, "worker-1", 30.0)
        assert sweep(committed) == (0, 0)
        pass_time(committed, 31)
        assert sweep(committed)[0] == 1
        assert relay_once(committed, queue) == 1
        job = job_of(committed, job_id)
        assert (job.status, job.failures, job.error_code) == (JobStatus.QUEUED, 1, "worker_lost")

    def test_a_job_whose_workers_are_lost_again_and_again_fails(self, committed: SessionFactory) -> None:
        [job_id] = ask(committed)
        for _ in range(3):
            with UnitOfWork.open(committed, PLATFORM) as uow:
                assert jobs.claim(uow, job_id, "worker-1", 30.0)
            pass_time(committed, 31)
            sweep(committed, max_failures=3)
        assert job_of(committed, job_id).status is JobStatus.FAILED
        assert waiting(committed) == []
        assert sweep(committed) == (0, 0)

    def test_a_pausing_job_is_sent_when_its_pause_is_over(self, committed: SessionFactory) -> None:
        [job_id], queue = ask(committed), InMemoryQueue()
        relay_once(committed, queue)
        with UnitOfWork.open(committed, PLATFORM) as uow:
            claim = jobs.claim(uow, job_id, "worker-1", 30.0)
            assert claim is not None
            jobs.fail(uow, claim, "out_of_memory", "no memory", retryable=True)
        assert sweep(committed) == (0, 0)
        with all_rows(committed) as session:
            session.execute(update(Job).values(run_after=Job.run_after - timedelta(seconds=10)))
        assert sweep(committed) == (0, 1)


class TestLoop:
    @pytest.fixture
    def start(self, committed: SessionFactory, postgres_url: str) -> Iterator[Start]:
        """Runs relays in threads until the test ends."""
        relays: list[tuple[Relay, threading.Thread]] = []

        def start(queue: JobQueue, observer: Notes | None = None, poll_s: float = 5.0) -> Relay:
            relay = Relay(committed, queue, postgres_url, RelayOptions(poll_s=poll_s), observer)
            thread = threading.Thread(target=relay.run)
            thread.start()
            relays.append((relay, thread))
            return relay

        yield start
        for relay, thread in relays:
            relay.stop()
            thread.join(5)
            assert not thread.is_alive()

    def test_a_commit_wakes_it_long_before_it_would_look(self, committed: SessionFactory, start: Start) -> None:
        queue = InMemoryQueue()
        start(queue)
        time.sleep(0.3)  # it has looked and found nothing
        began = time.monotonic()
        [job_id] = ask(committed)
        until(lambda: queue.published == [job_id])
        assert time.monotonic() - began < 3.0

    def test_an_observer_hears_of_what_it_sends_and_of_what_waits(
        self, committed: SessionFactory, start: Start
    ) -> None:
        ask(committed, 2)
        notes = Notes()
        start(InMemoryQueue(), notes)
        until(lambda: notes.messages == 2 and len(notes.backlogs) > 0)
        assert (notes.backlogs[-1].messages, notes.backlogs[-1].queued, notes.away) == (0, 2, 0)

    def test_it_waits_for_a_broker_that_is_away(self, committed: SessionFactory, start: Start) -> None:
        queue = InMemoryQueue()
        queue.away = True
        notes = Notes()
        start(queue, notes)
        ids = ask(committed, 2)
        until(lambda: notes.away > 0)
        assert waiting(committed) == ids
        queue.away = False
        until(lambda: queue.published == ids)

    def test_two_of_them_send_everything_once(self, committed: SessionFactory, start: Start) -> None:
        queues = [InMemoryQueue(), InMemoryQueue()]
        for queue in queues:
            start(queue, poll_s=0.05)
        ids = [job_id for _ in range(5) for job_id in ask(committed, 4)]
        until(lambda: waiting(committed) == [])
        assert sorted(queues[0].published + queues[1].published) == sorted(ids)


def test_a_sent_message_is_a_span_in_its_request_s_trace(committed: SessionFactory) -> None:
    spans = InMemorySpanExporter()
    tracing = start_tracing("relay", TracingSettings(), spans)
    origin = Origin("req_1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    with UnitOfWork.open(committed, PLATFORM) as uow:
        factory = Factory(uow)
        traced = factory.fit(factory.caller(), origin=origin).job.id
        factory.fit(factory.caller())
    queue = InMemoryQueue()
    queue.confirm_at_most = 1
    assert relay_once(committed, queue, tracing.tracer) == 1
    tracing.stop()
    (span,) = spans.get_finished_spans()  # none for the one that the broker did not confirm
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert span.attributes is not None
    assert span.attributes["alignez.job_id"] == str(traced)
    assert span.attributes["alignez.request_id"] == "req_1"
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < span.end_time
