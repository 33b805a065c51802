"""`alignez jobs`: fits and evaluations in progress."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.client import job_path
from cli.errors import CliError
from cli.job_view import watch_job
from cli.shell import DataDirOption, JsonOption, KeyOption, UrlOption, connect, new_app, out, print_table

jobs_app = new_app("Watch, list and cancel fits and evaluations.")

JobArgument = Annotated[str, typer.Argument(help="Id of the job.")]


@jobs_app.command()
def watch(job: JobArgument, url: UrlOption = None, key: KeyOption = None, data_dir: DataDirOption = None) -> None:
    """Show a job's progress until it ends; exit code 1 when it failed or was cancelled."""
    with connect(url, key, data_dir) as client:
        client.call("GET", job_path(job))
        last = watch_job(out, client.job_events(job))
        row = client.call("GET", job_path(job))
    if last.get("status") != "succeeded":
        raise CliError(job_failure(row))
    out.print("succeeded")


@jobs_app.command("list")
def list_(
    status: Annotated[
        str | None, typer.Option(help="Only queued, running, succeeded, failed or cancelled ones.")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List your jobs, newest first."""
    with connect(url, key, data_dir) as client:
        rows = client.all("/v1/jobs", status=status)
    if as_json:
        out.print_json(data=rows)
        return
    print_table(
        ["id", "kind", "status", "stage", "version", "created", "error"],
        [
            [
                row["id"],
                row["kind"],
                row["status"],
                row["stage"],
                row["version"],
                row["created_at"][:19],
                row["error"] and row["error"]["code"],
            ]
            for row in rows
        ],
        "no jobs",
    )


@jobs_app.command()
def cancel(job: JobArgument, url: UrlOption = None, key: KeyOption = None, data_dir: DataDirOption = None) -> None:
    """Cancel a job: a waiting one at once, a running one between two batches."""
    with connect(url, key, data_dir) as client:
        row = client.call("POST", f"{job_path(job)}/cancel")
    out.print(row["status"] if row["status"] == "cancelled" else f"{row['status']}, asked to stop", markup=False)


def job_failure(row: dict[str, object]) -> str:
    """Why a job did not succeed, in one line."""
    error = row.get("error")
    detail = f": {error['message']} ({error['code']})" if isinstance(error, dict) else ""
    return f"job {row['id']} {row['status']}{detail}"
