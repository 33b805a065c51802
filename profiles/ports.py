"""Port to the message broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID


class JobQueue(Protocol):
    """Carries hints "look at this job" to workers. It may repeat, reorder or lose them: the jobs table is the truth.

    Implementations: `celery_queue.CeleryQueue`, and an in-memory one for tests.
    """

    def publish(self, job_ids: Sequence[UUID]) -> list[UUID]:
        """Sends one message per job, each confirmed by the broker; returns those that were, in order.

        Raises: BrokerUnavailable: not even the first could be sent.
        """
        ...

    def close(self) -> None:
        """Gives connections back. Safe to call twice."""
        ...
