"""Authentication: bearer keys, looked up once and remembered for a few seconds."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from uuid import UUID

from api.metrics import Metrics
from profiles.errors import Unauthenticated
from profiles.service import Caller, authenticate
from profiles.uow import SessionFactory, UnitOfWork

_SCHEME = "bearer "
_MAX_KEY = 256


class Authenticator:
    """Maps keys to callers. A known key costs no database round trip for `ttl_s`; a revoked one works that long.

    The cache holds digests, never keys, and is asked by digest: what a comparison's time could tell about a stored
    digest says nothing about the key behind it.
    """

    def __init__(self, sessions: SessionFactory, metrics: Metrics, *, ttl_s: float, size: int) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._ttl = ttl_s
        self._size = size
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, header: str | None) -> Caller | None:
        """The caller of an `Authorization` header, if this key was seen just now. Never blocks.

        Raises: Unauthenticated: no bearer key at all.
        """
        digest = _digest(_secret(header))
        with self._lock:
            found = self._known.get(digest)
            if found is None or found[1] < time.monotonic():
                self._metrics.auth_cache.labels("miss").inc()
                return None
        self._metrics.auth_cache.labels("hit").inc()
        return found[0]

    def look_up(self, header: str | None) -> Caller:
        """The caller by the database; to be called in a thread.

        Raises: Unauthenticated: unknown, expired or revoked. DatabaseUnavailable.
        """
        secret = _secret(header)
        with UnitOfWork.open(self._sessions) as uow:
            caller = authenticate(uow, secret)
        with self._lock:
            self._known[_digest(secret)] = (caller, time.monotonic() + self._ttl)
            self._known.move_to_end(_digest(secret))
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        return caller

    def forget(self, key_id: UUID) -> None:
        """Drops a key at once, so that revoking it in this process needs no waiting."""
        with self._lock:
            for digest in [d for d, (caller, _) in self._known.items() if caller.key_id == key_id]:
                del self._known[digest]


def _secret(header: str | None) -> str:
    if header is None or header[: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthenticated("send the API key as 'Authorization: Bearer <key>'")
    secret = header[len(_SCHEME) :].strip()
    if not secret or len(secret) > _MAX_KEY or not secret.isascii() or not secret.isprintable():
        raise Unauthenticated
    return secret


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()
