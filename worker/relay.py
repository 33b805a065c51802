"""The relay process: sends committed outbox rows to the broker and mends lost leases. Several may run."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from types import FrameType

from profiles.celery_queue import CeleryQueue
from profiles.exporter import MetricsServer
from profiles.outbox import Relay, RelayObserver, RelayOptions
from profiles.settings import DatabaseSettings
from profiles.uow import make_session_factory
from worker.metrics import RelayMetrics
from worker.settings import WorkerSettings


def make_relay(settings: WorkerSettings, database: DatabaseSettings, observer: RelayObserver | None = None) -> Relay:
    """A relay on its own connections; `Relay.run` blocks until `Relay.stop`."""
    queue = CeleryQueue(database.broker_url, queue=settings.queue, task_time_limit_s=settings.job_time_limit_s)
    options = RelayOptions(settings.relay_poll_s, settings.relay_sweep_s, settings.relay_resend_s)
    return Relay(make_session_factory(database), queue, database.database_url, options, observer)


def main(
    settings: WorkerSettings | None = None,
    database: DatabaseSettings | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Relays until SIGTERM or Ctrl-C; returns the process's exit status.

    Args:
        on_ready: called once signals end it cleanly, before it begins.
    """
    settings = settings or WorkerSettings()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    metrics = RelayMetrics()
    relay = make_relay(settings, database or DatabaseSettings(), metrics)

    def stop(number: int, frame: FrameType | None) -> None:
        relay.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    exporter = None
    if settings.metrics_port is not None:
        exporter = MetricsServer.start(metrics.registry, settings.metrics_host, settings.metrics_port)
        logging.getLogger(__name__).info("metrics on port %d", exporter.port)
    try:
        on_ready()
        relay.run()
    finally:
        if exporter is not None:
            exporter.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
