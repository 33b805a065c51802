"""Keeps this process's caches true to what other processes erase or revoke."""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID

import psycopg
import structlog

from profiles.connection import DeadlineConnection, listen
from profiles.repository.erasure import FORGET_CHANNEL
from profiles.spec import parse_id

log = structlog.get_logger("api")

#: Longest wait for a notice; a connection that is silent for longer is asked whether it still works.
_LOOK_EVERY_S = 5.0
_RETRY_S = 1.0


class Forgetting:
    """Listens for notices of erased versions and ended keys, in a thread, from `start` to `stop`.

    After a lost connection everything is forgotten, because notices may have been missed.

    Args:
        url: SQLAlchemy URL of the database.
        forget_version, forget_key: called with an id; None: all of them.
    """

    def __init__(
        self, url: str, forget_version: Callable[[UUID | None], None], forget_key: Callable[[UUID | None], None]
    ) -> None:
        self._url = url
        self._forget = {"version": forget_version, "key": forget_key}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forgetting", daemon=True)

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; blocks for a moment."""
        self._stopping.set()
        self._thread.join(timeout=2 * _LOOK_EVERY_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with listen(self._url, FORGET_CHANNEL, 2 * _LOOK_EVERY_S) as connection:
                    for forget in self._forget.values():
                        forget(None)
                    self._listen(connection)
            except psycopg.Error as error:
                log.debug("not_listening", reason=type(error).__name__)
                self._stopping.wait(_RETRY_S)
            except Exception:  # without this thread, nothing would be forgotten any more
                log.exception("not_listening")
                self._stopping.wait(_RETRY_S)

    def _listen(self, connection: DeadlineConnection) -> None:
        waited = 0.0
        while not self._stopping.is_set():
            heard = False
            for notice in connection.notifies(timeout=0.25, stop_after=1):
                heard = True
                self._obey(notice.payload)
            waited = 0.0 if heard else waited + 0.25
            if waited >= _LOOK_EVERY_S:
                connection.execute("SELECT 1")
                waited = 0.0

    def _obey(self, notice: str) -> None:
        """Forgets what a notice names; everything if it names nothing, as any user of the database can send one."""
        kind, _, text = notice.partition(" ")
        id_ = parse_id(text)
        if kind in self._forget and id_ is not None:
            self._forget[kind](id_)
            return
        log.warning("malformed_notice")
        for forget in self._forget.values():
            forget(None)
