"""Runs the API under uvicorn, with a clean end: requests that run may finish, watchers are sent away at once."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from api.app import create_app
from api.connections import ConnectionLimits, limited_protocol
from api.services import Services
from api.settings import ApiSettings
from profiles.settings import DatabaseSettings, read_settings
from telemetry.logs import configure_logs
from telemetry.tracing import start_tracing

log = structlog.get_logger("api")

#: After the drain, for the last bytes of answers that the engine's end has ended.
_LAST_BYTES_S = 5


class Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown.

    At a signal it tells the app, so that event streams end, and serves on for `drain_delay_s`, while `/ready` answers
    503 and each answer closes its connection. Then it accepts no connection, waits up to `drain_s` for running requests
    and closes the engine: whole answers become a 503, and streams end with an error event. uvicorn alone would cancel
    their tasks, which a client cannot tell from a broken connection.
    """

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._closes_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain, after the delay. Second: drain now. A further Ctrl-C: leave at once."""
        delay = self._services.settings.drain_delay_s
        self._services.draining.set()
        if self._closes_at is None and delay > 0:
            self._closes_at = time.monotonic() + delay
            self._captured_signals.append(sig)  # as uvicorn does: the process ends by it
            log.info("drain_delayed", delay_s=delay)
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """True once no more connections are taken; called ten times a second."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections, and waits for those that there are."""
        deadline = asyncio.create_task(self._end_generation())
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    async def _end_generation(self) -> None:
        await asyncio.sleep(self._services.settings.drain_s)
        if self._services.model is not None:
            log.warning("drain_exceeded", drain_s=self._services.settings.drain_s)
            await run_in_threadpool(self._services.model.engine.close)


def server_config(app: FastAPI, settings: ApiSettings) -> uvicorn.Config:
    """uvicorn as it is deployed. Raises: SystemExit: the certificate cannot be used."""
    context = settings.tls.context() if settings.tls is not None else None
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # configure_logs did it
        access_log=False,  # RequestContext writes a line with the request id
        server_header=False,
        timeout_graceful_shutdown=round(settings.drain_s) + _LAST_BYTES_S,
        # Longer than load balancers keep a connection: who closes first must not be the server.
        timeout_keep_alive=75,
        loop="auto",  # uvloop where it is: what one turn of the loop writes to a connection is one system call
        # h11, because httptools does not limit the size of headers. The limit on bodies is ours.
        http=limited_protocol(
            ConnectionLimits(settings.header_timeout_s, settings.body_timeout_s, settings.max_connections)
        ),
        ws="none",
        ssl_context_factory=(lambda config, default: context) if context is not None else None,
        h11_max_incomplete_event_size=64 * 1024,
    )


def serve(settings: ApiSettings | None = None, *, sockets: list[socket.socket] | None = None) -> int:
    """Serves until a signal comes; returns the process's exit code.

    Args:
        sockets: already bound, for a caller who wants to know the port beforehand.
    Raises: SystemExit: a setting is invalid.
    """
    settings = settings or read_settings(ApiSettings)
    database = read_settings(DatabaseSettings)
    for files in (settings.tls, settings.metrics_tls):
        if files is not None:
            files.context()  # a wrong file ends the process before anything starts
    configure_logs(settings.log_level, settings.log_format)
    tracing = start_tracing("api")
    fatal: list[str] = []

    def stop(line: str) -> None:
        fatal.append(line)
        app.state.services.draining.set()
        server.should_exit = True

    app = create_app(settings, database=database, on_fatal=stop, tracing=tracing)
    server = Server(server_config(app, settings), app.state.services)
    try:
        server.run(sockets=sockets)
    except KeyboardInterrupt:
        return 0
    finally:
        tracing.stop()
    if fatal:
        print(f"alignez: {fatal[0]}", file=sys.stderr)
        return 1
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(serve())
