"""Errors as a job's owner sees them, and whether the job is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from alignez_core.errors import AlignezError, EngineClosed, EngineOverloaded, JudgeUnavailable, OutOfMemory
from profiles.errors import BrokerUnavailable, DatabaseUnavailable, ProfilesError


class HandBack(Exception):
    """The worker shuts down between two batches; the job goes back to the queue at once."""


class TimeLimitExceeded(Exception):
    """The job took longer than the worker's limit."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the job took longer than {limit_s:g} s (ALIGNEZ_WORKER_JOB_TIME_LIMIT_S)")


@dataclass(frozen=True)
class Failure:
    """End of a failed job: a code that a person can act on, a short message, and whether it is tried again."""

    code: str
    message: str
    retryable: bool


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception of a job stands for; an unexpected one is `internal_error` without details."""
    if isinstance(error, OutOfMemory | MemoryError):
        # Finished chunks are kept, so the next attempt has less to do; and a neighbour's peak passes.
        advice = "give the worker more memory, or use fewer queries or a smaller chunk_size"
        return Failure("out_of_memory", f"{error or 'out of memory'}; {advice}", True)
    if isinstance(error, EngineClosed | EngineOverloaded | JudgeUnavailable):
        return Failure(error.code, str(error), True)
    if isinstance(error, DatabaseUnavailable | BrokerUnavailable):
        return Failure(error.code, "the database was away for too long", True)
    if isinstance(error, TimeLimitExceeded):
        return Failure("time_limit_exceeded", str(error), False)
    if isinstance(error, AlignezError | ProfilesError):
        return Failure(error.code, str(error), False)
    return Failure("internal_error", "it failed unexpectedly; the worker's log has the reason", False)
