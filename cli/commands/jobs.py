"""`alignez jobs`: fits and evaluations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from cli.client import job_path
from cli.groups import new_app
from cli.job_view import follow_job
from cli.shell import connected, print_json

jobs_app = new_app("Watch, list and cancel fits and evaluations.")

JobArgument = Annotated[str, typer.Argument(help="Id of the job, from `alignez jobs list`.")]

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


@jobs_app.command()
def watch(context: typer.Context, job: JobArgument) -> None:
    """Show a job's progress until it ends; exit status 1 when it failed or was cancelled.

    Ctrl-C ends the watching, not the job.

    Example: alignez jobs watch 01a215a3-550f-7f53-b899-2f78183c5f24
    """
    with connected(context) as (shell, client):
        client.call("GET", job_path(job))  # an unknown id is refused before any progress is shown
        shell.say(follow_job(client, job, shell.progress), "succeeded")


@jobs_app.command("list")
def list_(
    context: typer.Context,
    status: Annotated[
        str | None, typer.Option(help="Only jobs of this status: queued, running, succeeded, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to show, newest first.")] = 50,
) -> None:
    """List your jobs, newest first.

    Example: alignez jobs list --status failed
    """
    with connected(context) as (shell, client):
        rows = client.all("/v1/jobs", limit, status=status)
        names = client.profile_names({row["profile_id"] for row in rows})
    now = datetime.now(UTC)
    shell.table(
        [{**row, "profile": names.get(row["profile_id"])} for row in rows],
        {
            "id": "id",
            "profile": lambda row: row["profile"] or "(deleted)",
            "version": "version",
            "kind": "kind",
            "status": "status",
            "stage": _stage,
            "age": lambda row: _age(row["created_at"], now),
            "error": lambda row: row["error"] and row["error"]["code"],
        },
        "no jobs",
    )


@jobs_app.command()
def show(context: typer.Context, job: JobArgument) -> None:
    """Print a job as JSON, with its progress and its error.

    Example: alignez jobs show 01a215a3-550f-7f53-b899-2f78183c5f24
    """
    with connected(context) as (_, client):
        print_json(client.call("GET", job_path(job)))


@jobs_app.command()
def cancel(context: typer.Context, job: JobArgument) -> None:
    """Cancel a job: a queued job at once, a running job between two batches.

    Example: alignez jobs cancel 01a215a3-550f-7f53-b899-2f78183c5f24
    """
    with connected(context) as (shell, client):
        row = client.call("POST", f"{job_path(job)}/cancel")
    shell.say(row, row["status"] if row["status"] == "cancelled" else f"{row['status']}, asked to stop")


def _age(created_at: str, now: datetime) -> str:
    """Time since an event, in its largest unit: 45s, 12m, 3h, 2d."""
    seconds = max(0, int((now - datetime.fromisoformat(created_at)).total_seconds()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _stage(row: dict[str, Any]) -> str | None:
    """The stage, with its count while the job runs."""
    stage: str | None = row["stage"]
    counts = (row.get("progress") or {}).get(stage)
    if row["status"] != "running" or not counts:
        return stage
    return f"{stage} {counts['done']}/{counts['total']}"
