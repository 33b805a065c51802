"""`alignez dead-letters`: messages that RabbitMQ put aside because no worker could do anything with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.groups import new_app
from cli.shell import err, shell_of

if TYPE_CHECKING:
    from profiles.delivery.dead_letters import DeadLetter, DeadLetters

dead_letters_app = new_app(
    "Look at, replay or drop messages that RabbitMQ put aside (ALIGNEZ_BROKER_URL). No fit depends on them: a queued "
    "job is sent again by the relay."
)

LimitOption = Annotated[int, typer.Option(min=1, help="At most so many, the oldest first.")]


@dead_letters_app.command("list")
def list_(context: typer.Context, limit: LimitOption = 100) -> None:
    """List them; they stay where they are.

    Example: alignez dead-letters list --limit 10
    """
    _show(context, _letters().look(limit))


@dead_letters_app.command()
def replay(context: typer.Context, limit: LimitOption = 100) -> None:
    """Send them to the workers again. Harmless for jobs that are finished.

    Example: alignez dead-letters replay
    """
    _show(context, _letters().replay(limit))


@dead_letters_app.command()
def drop(context: typer.Context, limit: LimitOption = 100) -> None:
    """Remove the oldest ones for good.

    Example: alignez dead-letters drop --limit 1
    """
    dropped = _letters().drop(limit)
    shell_of(context).say({"dropped": dropped}, f"{dropped} dropped")


def _letters() -> DeadLetters:
    # Imported here: celery and sqlalchemy take longer to load than any other command takes to run.
    from profiles.delivery.dead_letters import DeadLetters
    from profiles.settings import DatabaseSettings
    from worker.settings import WorkerSettings

    settings = WorkerSettings()
    letters = DeadLetters(
        DatabaseSettings().broker_url, queue=settings.queue, task_time_limit_s=settings.job_time_limit_s
    )
    if not letters.are_kept:
        err.print("Redis keeps no dead letters; the relay sends queued jobs again by itself", style="dim")
    return letters


def _show(context: typer.Context, letters: list[DeadLetter]) -> None:
    shell_of(context).table(
        [asdict(letter) | {"died_at": letter.died_at and letter.died_at.isoformat()} for letter in letters],
        ["job", "task", "reason", "died at"],
        [[one.job or "-", one.task, one.reason, one.died_at and one.died_at.isoformat()] for one in letters],
        "no dead letters",
    )
