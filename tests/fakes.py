"""Stand-ins for the outside world."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from profiles.errors import BrokerUnavailable


class InMemoryQueue:
    """A `JobQueue` that keeps what was published.

    Attributes:
        published: job ids in the order of their confirmation. away: whether the broker refuses everything.
        confirm_at_most: messages confirmed per call before the connection breaks; None: all.
    """

    def __init__(self) -> None:
        self.published: list[UUID] = []
        self.away = False
        self.confirm_at_most: int | None = None

    def publish(self, job_ids: Sequence[UUID]) -> list[UUID]:
        if self.away:
            raise BrokerUnavailable
        confirmed = list(job_ids)[: self.confirm_at_most]
        self.published += confirmed
        return confirmed

    def close(self) -> None:
        return None
