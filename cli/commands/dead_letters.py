"""`alignez dead-letters`: messages that RabbitMQ put aside because no worker could do anything with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cli.shell import JsonOption, err, new_app, out, print_table
from profiles.delivery.dead_letters import DeadLetter, DeadLetters
from profiles.settings import DatabaseSettings
from worker.settings import WorkerSettings

dead_letters_app = new_app(
    "Look at, replay or drop messages that RabbitMQ put aside (ALIGNEZ_BROKER_URL). No fit depends on them: a queued "
    "job is sent again by the relay."
)

LimitOption = Annotated[int, typer.Option(min=1, help="At most so many, the oldest first.")]


@dead_letters_app.command("list")
def list_(limit: LimitOption = 100, as_json: JsonOption = False) -> None:
    """List them; they stay where they are."""
    _show(_letters().look(limit), as_json)


@dead_letters_app.command()
def replay(limit: LimitOption = 100, as_json: JsonOption = False) -> None:
    """Send them to the workers again. Harmless for jobs that are finished."""
    _show(_letters().replay(limit), as_json)


@dead_letters_app.command()
def drop(limit: LimitOption = 100) -> None:
    """Remove the oldest ones for good."""
    out.print(_letters().drop(limit), "dropped")


def _letters() -> DeadLetters:
    settings = WorkerSettings()
    letters = DeadLetters(
        DatabaseSettings().broker_url, queue=settings.queue, task_time_limit_s=settings.job_time_limit_s
    )
    if not letters.are_kept:
        err.print("Redis keeps no dead letters; the relay sends queued jobs again by itself", style="dim")
    return letters


def _show(letters: list[DeadLetter], as_json: bool) -> None:
    if as_json:
        rows = [asdict(letter) | {"died_at": letter.died_at and letter.died_at.isoformat()} for letter in letters]
        out.print_json(data=rows)
        return
    print_table(
        ["job", "task", "reason", "died at"],
        [[one.job or "-", one.task, one.reason, one.died_at and one.died_at.isoformat()] for one in letters],
        "no dead letters",
    )
