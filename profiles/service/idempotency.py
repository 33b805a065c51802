"""`Idempotency-Key`: a repeated request takes effect once and gets the same response."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from profiles.errors import IdempotencyConflict, InvalidSpec
from profiles.service.keys import Caller
from profiles.uow import UnitOfWork

_KEY_LIMIT = 200


@dataclass(frozen=True)
class StoredResponse:
    """The response to the first request."""

    status_code: int
    body: dict[str, Any]


def request_digest(method: str, path: str, body: bytes) -> bytes:
    """32 bytes that identify a request; the same key with another digest is a conflict."""
    return hashlib.sha256(f"{method} {path}\n".encode() + body).digest()


def begin_idempotent(uow: UnitOfWork, caller: Caller, key: str, request_sha256: bytes) -> StoredResponse | None:
    """The stored response to replay; None: handle the request and call `finish_idempotent` in the same transaction.

    A second request with the key waits here until the first one's transaction has ended.

    Raises: IdempotencyConflict: the key belongs to another request. InvalidSpec: the key is malformed.
    """
    if not 1 <= len(key) <= _KEY_LIMIT or not key.isprintable():
        raise InvalidSpec("Idempotency-Key", f"must be 1 to {_KEY_LIMIT} printable characters")
    held = uow.repository.accounts.claim_idempotency_key(caller.tenant_id, key, request_sha256)
    if held is None:
        return None
    if held.request_sha256 != request_sha256 or held.status_code is None or held.response is None:
        raise IdempotencyConflict(key)
    return StoredResponse(held.status_code, held.response)


def finish_idempotent(uow: UnitOfWork, caller: Caller, key: str, status_code: int, body: dict[str, Any]) -> None:
    """Stores the response for a key that this transaction holds."""
    uow.repository.accounts.store_response(caller.tenant_id, key, status_code, body)
