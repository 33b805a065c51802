"""`alignez migrate | api | worker | relay`: the single processes, configured by the environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.shell import shell_of

ReadyFileOption = Annotated[
    Path | None, typer.Option(help="File to create when the process is ready, for probes.", show_default=False)
]


def migrate(
    context: typer.Context,
    autogenerate: Annotated[
        str | None, typer.Option(metavar="MESSAGE", help="For developers: write a new migration from the models.")
    ] = None,
) -> None:
    """Migrate the database of ALIGNEZ_DATABASE_URL to this release's schema. Safe to repeat and to run in parallel.

    Example: alignez migrate
    """
    from profiles import migrate as migrations

    shell = shell_of(context)
    if autogenerate:
        written = _write_migration(autogenerate)
        shell.say({"written": written}, f"wrote {written}")
        return
    ours = migrations.upgrade()
    newer = "a newer release has migrated the database, which also serves this release: nothing to do"
    shell.say({"newer_release": not ours}, "the database has this release's schema" if ours else newer)


def api() -> None:
    """Run the REST API (settings: ALIGNEZ_API_*, ALIGNEZ_DATABASE_URL, ALIGNEZ_BROKER_URL, ALIGNEZ_MODEL).

    Example: ALIGNEZ_API_PORT=8080 alignez api
    """
    from api.server import serve

    raise typer.Exit(serve())


def worker(ready_file: ReadyFileOption = None) -> None:
    """Run a fit worker (settings: ALIGNEZ_WORKER_*, ALIGNEZ_DATABASE_URL, ALIGNEZ_BROKER_URL, ALIGNEZ_MODEL).

    Example: alignez worker --ready-file /tmp/ready
    """
    from celery import signals

    from worker.app import run_worker

    def die_with_worker(**_: Any) -> None:
        """In the pool child: it must not go on with a fit after a kill -9 of its parent."""
        from cli.local_stack.exec_guard import die_with_parent

        die_with_parent(signal.SIGKILL)

    def note_ready(**_: Any) -> None:
        """In the pool child, after its model was loaded."""
        _touch(ready_file)

    def connect_note(**_: Any) -> None:
        """Connects `note_ready` after the receiver that loads the model, because receivers run in this order."""
        signals.worker_process_init.connect(note_ready, weak=False)

    signals.worker_process_init.connect(die_with_worker, weak=False)
    signals.worker_init.connect(connect_note, weak=False)
    raise typer.Exit(run_worker())


def relay(ready_file: ReadyFileOption = None) -> None:
    """Run the relay, which sends queued jobs to the broker and recovers lost ones. Several may run.

    Example: alignez relay --ready-file /tmp/ready
    """
    from worker.relay import main

    raise typer.Exit(main(on_ready=lambda: _touch(ready_file)))


def _touch(ready_file: Path | None) -> None:
    if ready_file is not None:
        ready_file.write_text(f"{os.getpid()}\n", encoding="utf-8")


def _write_migration(message: str) -> str:
    """Path of a new migration from the database's schema to that of the models.

    Raises: CliError: both are equal, or the database is not at the newest migration.
    """
    from alembic import command
    from alembic.util.exc import CommandError
    from sqlalchemy import create_engine

    from profiles.migrate import alembic_config
    from profiles.settings import DatabaseSettings, read_settings
    from profiles.uow import database_errors

    engine = create_engine(read_settings(DatabaseSettings).database_url)
    try:
        with database_errors(), engine.connect() as connection:
            script = command.revision(alembic_config(connection), message, autogenerate=True)
    except CommandError as error:
        raise CliError(f"{error}; run `alignez migrate` first") from None
    finally:
        engine.dispose()
    if script is None or isinstance(script, list):
        raise CliError("alembic wrote no single migration")
    return str(script.path)
