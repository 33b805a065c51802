"""`alignez dead-letters`: messages that RabbitMQ put aside because no worker could handle them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.groups import new_app
from cli.shell import err, shell_of

if TYPE_CHECKING:
    from profiles.delivery.dead_letters import DeadLetter, DeadLetters

dead_letters_app = new_app(
    "List, replay or drop messages that RabbitMQ put aside (ALIGNEZ_BROKER_URL). No fit depends on them: the relay "
    "sends a queued job again."
)

LimitOption = Annotated[int, typer.Option(min=1, help="Most messages, oldest first.")]


@dead_letters_app.command("list")
def list_(context: typer.Context, limit: LimitOption = 100) -> None:
    """List the messages, which stay in their queue.

    Example: alignez dead-letters list --limit 10
    """
    _show(context, _letters().look(limit))


@dead_letters_app.command()
def replay(context: typer.Context, limit: LimitOption = 100) -> None:
    """Send the messages to the workers again; no effect for finished jobs.

    Example: alignez dead-letters replay
    """
    _show(context, _letters().replay(limit))


@dead_letters_app.command()
def drop(context: typer.Context, limit: LimitOption = 100) -> None:
    """Remove the oldest messages permanently.

    Example: alignez dead-letters drop --limit 1
    """
    dropped = _letters().drop(limit)
    shell_of(context).say({"dropped": dropped}, f"{dropped} dropped")


def _letters() -> DeadLetters:
    # Imported here, because celery and sqlalchemy load slowly.
    from profiles.delivery.dead_letters import DeadLetters
    from profiles.settings import DatabaseSettings, read_settings
    from worker.settings import WorkerSettings

    settings = read_settings(WorkerSettings)
    letters = DeadLetters(
        read_settings(DatabaseSettings).broker_url, queue=settings.queue, task_time_limit_s=settings.job_time_limit_s
    )
    if not letters.are_kept:
        err.print("Redis keeps no dead letters; the relay sends queued jobs again", style="dim")
    return letters


def _show(context: typer.Context, letters: list[DeadLetter]) -> None:
    shell_of(context).table(
        [asdict(letter) | {"died_at": letter.died_at and letter.died_at.isoformat()} for letter in letters],
        {"job": lambda row: row["job"] or "-", "task": "task", "reason": "reason", "died at": "died_at"},
        "no dead letters",
    )
