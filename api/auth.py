"""Authentication by bearer key, with a cache that keeps each caller for a few seconds."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Hashable
from uuid import UUID

from cachetools import TTLCache

from api.metrics import Metrics
from profiles.errors import Unauthenticated
from profiles.service import Caller, authenticate, note_refused_key
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork

_SCHEME = "bearer "
_MAX_KEY = 256
#: The same refusal is written to the audit log once in this time.
_NOTE_EVERY_S = 600.0


class Authenticator:
    """Maps API keys to callers, and caches each for `ttl_s`; a key revoked in another process is valid for that long.

    The cache is indexed by the key's digest: the timing of a comparison with a digest reveals nothing about the key.

    Args:
        ttl_s: seconds that a caller stays cached. size: callers at most. timer: a clock, in seconds.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        metrics: Metrics,
        *,
        ttl_s: float,
        size: int,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._known: TTLCache[bytes, Caller] = TTLCache(size, ttl_s, timer)
        #: Refusals that the audit log has, so that a client in a loop does not fill it.
        self._noted: TTLCache[Hashable, bool] = TTLCache(size, _NOTE_EVERY_S, timer)
        self._lock = threading.Lock()

    def first_in_a_while(self, refusal: Hashable) -> bool:
        """True if this refusal has not been noted lately; it counts as noted from now on."""
        with self._lock:
            if refusal in self._noted:
                return False
            self._noted[refusal] = True
            return True

    def recall(self, header: str | None) -> Caller | None:
        """The cached caller of an `Authorization` header, or None. Never blocks on the database.

        Raises: Unauthenticated: the header is missing, or holds no bearer key.
        """
        digest = _digest(_secret(header))
        with self._lock:
            caller = self._known.get(digest)
        self._metrics.auth_cache.labels("miss" if caller is None else "hit").inc()
        return caller

    def look_up(self, header: str | None, address: str | None) -> Caller:
        """The caller, read from the database; blocks, so call it in a thread.

        Args:
            address: of the client, kept with the key's last use.

        Raises: Unauthenticated: the key is unknown, expired or revoked. DatabaseUnavailable.
        """
        secret = _secret(header)
        try:
            with UnitOfWork.open(self._sessions, PLATFORM) as uow:
                caller = authenticate(uow, secret, address)
        except Unauthenticated:
            if self.first_in_a_while(("key", _digest(secret))):
                with UnitOfWork.open(self._sessions, PLATFORM) as uow:
                    note_refused_key(uow, secret)
            raise
        with self._lock:
            self._known[_digest(secret)] = caller
        return caller

    def forget(self, key_id: UUID | None) -> None:
        """Removes a key from the cache, so that its revocation takes effect in this process at once; None: all."""
        with self._lock:
            for digest in [digest for digest, caller in self._known.items() if key_id in (None, caller.key_id)]:
                self._known.pop(digest, None)


def _secret(header: str | None) -> str:
    if header is None or header[: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthenticated("send the API key as 'Authorization: Bearer <key>'")
    secret = header[len(_SCHEME) :].strip()
    if not secret or len(secret) > _MAX_KEY or not secret.isascii() or not secret.isprintable():
        raise Unauthenticated
    return secret


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()
