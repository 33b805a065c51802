"""The relay process: sends committed outbox rows to the broker and recovers lost jobs. Several may run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

import structlog
from opentelemetry.trace import Tracer

from profiles.delivery.celery_queue import CeleryQueue
from profiles.delivery.outbox import Relay, RelayObserver, RelayOptions
from profiles.settings import DatabaseSettings, read_settings
from profiles.uow import make_session_factory
from telemetry.logs import configure_logs
from telemetry.metrics_server import MetricsServer
from telemetry.tracing import start_tracing
from worker.liveness import Pulse, WatchedRelay
from worker.metrics import RelayMetrics
from worker.settings import WorkerSettings

log = structlog.get_logger("relay")


def make_relay(
    settings: WorkerSettings,
    database: DatabaseSettings,
    observer: RelayObserver | None = None,
    tracer: Tracer | None = None,
) -> Relay:
    """A relay with its own connections. `Relay.run` blocks until `Relay.stop`."""
    queue = CeleryQueue(database.broker_url, queue=settings.queue, task_time_limit_s=settings.job_time_limit_s)
    options = RelayOptions(settings.relay_poll_s, settings.relay_sweep_s, settings.relay_resend_s)
    return Relay(make_session_factory(database), queue, database.database_url, options, observer, tracer)


def main(
    settings: WorkerSettings | None = None,
    database: DatabaseSettings | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Relays until SIGTERM or Ctrl-C; returns the process's exit status.

    Args:
        on_ready: called before the relay begins, after the signal handlers are installed.
    """
    settings = settings or read_settings(WorkerSettings)
    database = database or read_settings(DatabaseSettings)
    configure_logs(settings.log_level, settings.log_format)
    metrics = RelayMetrics()
    pulse = Pulse(settings.stuck_after_s)
    tracing = start_tracing("relay")
    relay = make_relay(settings, database, WatchedRelay(metrics, pulse), tracing.tracer)

    def stop(number: int, frame: FrameType | None) -> None:
        relay.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    exporter = None
    if settings.metrics_port is not None:
        host, port, tls = settings.metrics_host, settings.metrics_port, settings.metrics_tls
        exporter = MetricsServer.start(metrics.registry, host, port, tls=tls, alive=pulse.alive)
        log.info("metrics", port=exporter.port)
    try:
        on_ready()
        pulse.beat()
        relay.run()
    finally:
        tracing.stop()
        if exporter is not None:
            exporter.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
