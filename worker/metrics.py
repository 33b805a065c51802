"""Prometheus metrics of worker and relay, each in its own registry. Label values are bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from profiles.repository.jobs import Backlog

_STAGE_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)


class WorkerMetrics:
    """Metrics of a worker, in the process with the model."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.ready = Gauge("alignez_worker_ready", "1 when the model is loaded.", registry=r)
        self.busy = Gauge("alignez_worker_busy", "1 while a fit or an evaluation runs.", registry=r)
        self.attempts = Counter(
            "alignez_fit_attempts",
            "Attempts at a fit by how they ended: succeeded, failed, retry, cancelled, handed_back or lost.",
            ["outcome"],
            registry=r,
        )
        self.seconds = Histogram(
            "alignez_fit_seconds", "A fit that succeeded, from claim to publication.", registry=r, buckets=_STAGE_S
        )
        self.stage_seconds = Histogram(
            "alignez_fit_stage_seconds", "One stage of a fit that was fitted.", ["stage"], registry=r, buckets=_STAGE_S
        )
        self.evaluations = Counter(
            "alignez_evaluation_attempts",
            "Attempts at an evaluation by how they ended, as those at a fit.",
            ["outcome"],
            registry=r,
        )
        self.evaluation_seconds = Histogram(
            "alignez_evaluation_seconds",
            "An evaluation that succeeded, from claim to its row.",
            registry=r,
            buckets=_STAGE_S,
        )
        self.tokens = Counter("alignez_fit_tokens", "Tokens that fits and evaluations generated.", registry=r)
        self.quality = Counter(
            "alignez_fit_quality", "Verdicts on fitted versions: good or weak.", ["quality"], registry=r
        )

    def ended(self, kind: str, outcome: str) -> None:
        """Counts an attempt at a job of this kind, "fit" or "evaluate"."""
        (self.evaluations if kind == "evaluate" else self.attempts).labels(outcome).inc()


class RelayMetrics:
    """Metrics of the relay and of the backlog in the database; a `RelayObserver`.

    All relays report the same backlog, so a query has to take the maximum.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._sent = Counter("alignez_relay_messages", "Messages that the broker confirmed.", registry=r)
        self._resent = Counter(
            "alignez_relay_resent", "Messages of queued jobs that nobody claimed in time, sent again.", registry=r
        )
        self._leases_ended = Counter(
            "alignez_relay_leases_ended", "Running jobs whose worker stopped answering.", registry=r
        )
        self._unavailable = Counter(
            "alignez_relay_unavailable", "Turns that failed because database or broker was away.", registry=r
        )
        self._messages = Gauge("alignez_outbox_messages", "Messages that wait to be sent.", registry=r)
        self._oldest_message = Gauge("alignez_outbox_oldest_seconds", "Age of the oldest of them; 0: none.", registry=r)
        self._jobs = Gauge("alignez_jobs", "Jobs that are not finished, by status.", ["status"], registry=r)
        self._oldest_job = Gauge(
            "alignez_jobs_oldest_queued_seconds", "How long the oldest job that is due waits; 0: none.", registry=r
        )

    def sent(self, messages: int) -> None:
        self._sent.inc(messages)

    def swept(self, leases_ended: int, resent: int, backlog: Backlog) -> None:
        self._leases_ended.inc(leases_ended)
        self._resent.inc(resent)
        self._messages.set(backlog.messages)
        self._oldest_message.set(backlog.oldest_message_s)
        self._jobs.labels("queued").set(backlog.queued)
        self._jobs.labels("running").set(backlog.running)
        self._oldest_job.set(backlog.oldest_due_s)

    def unavailable(self) -> None:
        self._unavailable.inc()
