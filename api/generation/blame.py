"""Errors of the core and the database that name the request's field they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from alignez_core.errors import ContextTooLong, ModelMismatch, RequestTooLarge
from api.http.errors import ApiError, problem_of
from profiles.errors import ProfilesError

#: Errors about the choice of a profile, and about the length of a prompt.
CHOICE: tuple[type[Exception], ...] = (ProfilesError, ModelMismatch)
LENGTH: tuple[type[Exception], ...] = (ContextTooLong, RequestTooLarge)


@contextlib.contextmanager
def blaming(param: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Errors of these kinds that are the caller's to mend become an `ApiError` about the field `param`."""
    try:
        yield
    except kinds as error:
        problem = problem_of(error)
        if problem.status >= 500:
            raise
        refusal = ApiError(problem.status, problem.code, problem.message)
        refusal.problem = replace(problem, param=param, details={**problem.details, "field": param})
        raise refusal from error
