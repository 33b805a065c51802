"""A message is only a hint: whichever comes, the worker does the job whose tenant's turn it is."""

from __future__ import annotations

from sqlalchemy import select

from profiles.models import Job, JobStatus
from profiles.uow import PLATFORM, UnitOfWork
from tests.factories import Factory
from tests.worker.conftest import Bench
from tests.worker.fit_cases import SPEC


def test_the_messages_of_one_tenant_do_anothers_job_too(bench: Bench) -> None:
    jobs = [bench.request(name=f"p{i}", spec=SPEC).job.id for i in range(3)]
    with UnitOfWork.open(bench.sessions, PLATFORM) as uow:
        make = Factory(uow)
        other = make.fit(make.caller(), spec=SPEC).job.id

    def done() -> set[object]:
        with UnitOfWork.open(bench.sessions, PLATFORM) as uow:
            return set(uow.session.scalars(select(Job.id).where(Job.status == JobStatus.SUCCEEDED)))

    runner = bench.runner()
    assert runner.run(jobs[0]) == "succeeded"
    assert runner.run(jobs[1]) == "succeeded"
    assert done() == {jobs[0], other}
    assert [runner.run(other), runner.run(jobs[2]), runner.run(jobs[2])] == ["succeeded", "succeeded", "skipped"]
