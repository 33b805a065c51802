"""Errors of jobs: messages for the owner, and the decision on a retry."""

from __future__ import annotations

from dataclasses import dataclass

from alignez_core.errors import AlignezError, EngineClosed, EngineOverloaded, JudgeUnavailable, OutOfMemory
from profiles.errors import BrokerUnavailable, DatabaseUnavailable, ProfilesError


class HandBack(Exception):
    """The worker shuts down between two batches; the job is queued again at once."""


class TimeLimitExceeded(Exception):
    """The job took longer than the worker's limit."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the job took longer than {limit_s:g} s (ALIGNEZ_WORKER_JOB_TIME_LIMIT_S)")


@dataclass(frozen=True)
class Failure:
    """The error of a job: code, short message, and whether a retry can succeed."""

    code: str
    message: str
    retryable: bool


def failure_of(error: BaseException) -> Failure:
    """The failure for a job's exception. An unexpected exception is an `internal_error` without details."""
    if isinstance(error, OutOfMemory | MemoryError):
        # Finished chunks are kept, so the next attempt has less work, and other processes may need less memory then.
        advice = "give the worker more memory, or use fewer queries or a smaller chunk_size"
        return Failure("out_of_memory", f"{error or 'out of memory'}; {advice}", True)
    if isinstance(error, EngineClosed | EngineOverloaded | JudgeUnavailable):
        return Failure(error.code, str(error), True)
    if isinstance(error, DatabaseUnavailable | BrokerUnavailable):
        return Failure(error.code, "the database was unavailable for too long", True)
    if isinstance(error, TimeLimitExceeded):
        return Failure("time_limit_exceeded", str(error), False)
    if isinstance(error, AlignezError | ProfilesError):
        return Failure(error.code, str(error), False)
    return Failure("internal_error", "unexpected error; see the worker's log", False)
