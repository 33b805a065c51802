"""Delivery of jobs to workers: outbox, Celery queue, dead letters."""
