"""Whose job a worker takes next: tenants take turns, so that nobody's many jobs hold up another's one."""

from __future__ import annotations

from uuid import UUID

from profiles.fitting import claims
from profiles.models import JobStatus
from profiles.service import Caller, cancel_job
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.factories import Factory


def taken(uow: UnitOfWork) -> claims.Claim:
    claim = claims.claim_next(uow, "worker", 60.0)
    assert claim is not None
    return claim


def ended(uow: UnitOfWork) -> UUID:
    """The tenant of the next job, which is done at once, as one worker does them."""
    claim = taken(uow)
    with claims.fenced(uow, claim) as job:
        uow.repository.jobs.finish(job, JobStatus.FAILED, "test", "test")
    return claim.tenant_id


def queue(make: Factory, caller: Caller, count: int) -> list[UUID]:
    return [make.fit(caller).job.id for _ in range(count)]


def test_one_worker_serves_a_newcomer_next_and_then_in_turns(uow: UnitOfWork, make: Factory) -> None:
    many, one = make.caller(), make.caller()
    queue(make, many, 6)
    served = [ended(uow), ended(uow)]
    queue(make, one, 2)
    served += [ended(uow) for _ in range(6)]
    assert [tenant == many.tenant_id for tenant in served] == [True, True, False, True, False, True, True, True]
    assert claims.claim_next(uow, "worker", 60.0) is None


def test_of_several_workers_the_next_goes_to_whom_the_fewest_serve(uow: UnitOfWork, make: Factory) -> None:
    many, few = make.caller(), make.caller()
    queue(make, many, 9)
    running = [taken(uow).tenant_id for _ in range(3)]
    queue(make, few, 3)
    assert set(running) == {many.tenant_id}
    assert [taken(uow).tenant_id for _ in range(3)] == [few.tenant_id] * 3
    assert taken(uow).tenant_id == many.tenant_id


def test_within_a_tenant_the_first_to_come_is_the_first_to_go(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller()
    ids = queue(make, caller, 4)
    assert [taken(uow).job_id for _ in ids] == ids


def test_a_job_cancelled_in_the_queue_wins_no_turn(uow: UnitOfWork, make: Factory) -> None:
    canceller, other = make.caller(), make.caller()
    queue(make, other, 1)
    assert ended(uow) == other.tenant_id
    first = queue(make, canceller, 2)[0]
    cancel_job(uow, canceller, first)
    queue(make, other, 1)
    # The cancelled job counts as the later service.
    assert ended(uow) == other.tenant_id


def test_a_job_that_pauses_is_passed_over(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller()
    first, second = queue(make, caller, 2)
    claim = taken(uow)
    claims.fail(uow, claim, "out_of_memory", "no memory", retryable=True)
    assert claim.job_id == first
    assert taken(uow).job_id == second
    assert claims.claim_next(uow, "worker", 60.0) is None


def test_workers_that_claim_at_the_same_moment_get_different_tenants(committed: SessionFactory) -> None:
    with UnitOfWork.open(committed, PLATFORM) as uow:
        make = Factory(uow)
        tenants = [make.caller() for _ in range(2)]
        for caller in tenants:
            queue(make, caller, 3)
    with UnitOfWork.open(committed, PLATFORM) as first, UnitOfWork.open(committed, PLATFORM) as second:
        assert {taken(first).tenant_id, taken(second).tenant_id} == {caller.tenant_id for caller in tenants}
