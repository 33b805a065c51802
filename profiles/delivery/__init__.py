"""The way of a job to a worker: outbox, Celery queue, dead letters."""
