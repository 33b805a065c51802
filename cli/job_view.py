"""Progress of a fit or evaluation on the terminal: one bar per stage, from the job's events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cli.client import Client, job_path
from cli.errors import CliError

STAGES = ("characteristics", "responses", "readings", "fitting", "tuning", "evaluation")


def follow_job(client: Client, job_id: str, console: Console) -> dict[str, Any]:
    """Shows a job's progress until it has succeeded; returns its row.

    Raises: CliError: the job failed or was cancelled; or Ctrl-C, which does not end the job.
    """
    try:
        watch_job(console, client.job_events(job_id))
    except KeyboardInterrupt:
        raise CliError(
            f"the job goes on in the worker: watch it with `alignez jobs watch {job_id}`, or stop it with "
            f"`alignez jobs cancel {job_id}`",
            code="interrupted",
            details={"job": job_id},
            exit_status=130,
        ) from None
    row = client.call("GET", job_path(job_id))
    if row["status"] != "succeeded":
        error = row.get("error")
        reason = f": {error['message']} ({error['code']})" if isinstance(error, dict) else ""
        raise CliError(f"job {job_id} {row['status']}{reason}", code=f"job_{row['status']}", details=row)
    return row


def watch_job(console: Console, events: Iterable[dict[str, Any]], title: str = "") -> dict[str, Any]:
    """Shows events until the job ends; returns the merged events, with the final `status` and `error`.

    A terminal shows bars; elsewhere (a log, a pipe) each stage is one line when it ends.
    """
    last: dict[str, Any] = {}
    if not console.is_terminal:
        for event in events:
            if event.get("stage") and event["stage"] != last.get("stage") and last.get("stage"):
                _print_stage(console, last)
            last = {**last, **event}
        if last.get("stage"):
            _print_stage(console, last)
        return last
    bars: dict[str, TaskID] = {}
    columns = (TextColumn("  {task.description:<16}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for event in events:
            last = {**last, **event}
            counts: dict[str, dict[str, int]] = event.get("progress") or {}
            for stage in sorted(counts, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES)):
                done, total = counts[stage]["done"], counts[stage]["total"]
                if stage not in bars:
                    bars[stage] = progress.add_task(f"{title}{stage}", total=total)
                progress.update(bars[stage], completed=done, total=total)
                if stage != event.get("stage"):
                    progress.stop_task(bars[stage])
    return last


def _print_stage(console: Console, event: dict[str, Any]) -> None:
    counts = (event.get("progress") or {}).get(event["stage"])
    done = f"{counts['done']}/{counts['total']}" if counts else ""
    console.print(f"  {event['stage']:<16} {done}", markup=False)
