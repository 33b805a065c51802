"""`Idempotency-Key`: a repeated POST takes effect once and gets the first one's response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from profiles.service import Caller, begin_idempotent, finish_idempotent, request_digest
from profiles.uow import UnitOfWork

IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x20-\x7e]+$",
        description="makes a repeated request return the first one's answer",
    ),
]


def once(
    uow: UnitOfWork,
    caller: Caller,
    key: str | None,
    request: Request,
    body: BaseModel | None,
    status: int,
    make: Callable[[], BaseModel],
    *,
    location: Callable[[dict[str, Any]], str] | None = None,
    secret: str | None = None,
) -> JSONResponse:
    """Runs `make`, or returns the response that is stored for this key; both in the request's transaction.

    Args:
        body: the parsed body; requests with equal parsed bodies count as repeated.
        location: makes the `Location` header from the reply.
        secret: a field of the reply that must not be stored; a repeated request gets null instead.
    Raises: IdempotencyConflict: the key was used with another request.
    """
    if key is not None:
        text = body.model_dump_json(exclude_unset=True) if body is not None else ""
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        held = begin_idempotent(uow, caller, key, request_digest(request.method, path, text.encode()))
        if held is not None:
            return _reply(held.body, held.status_code, location, {"idempotency-replayed": "true"})
    made = make().model_dump(mode="json")
    if key is not None:
        kept = {**made, secret: None} if secret is not None else made
        finish_idempotent(uow, caller, key, status, kept)
    return _reply(made, status, location, {})


def _reply(
    body: dict[str, Any], status: int, location: Callable[[dict[str, Any]], str] | None, headers: dict[str, str]
) -> JSONResponse:
    if location is not None:
        headers["location"] = location(body)
    return JSONResponse(body, status, headers)
