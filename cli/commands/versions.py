"""The commands of `alignez profiles` for versions: list, promote, roll back, prove, archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.client import ApiError, Client, profile_path
from cli.commands.profiles import NameArgument, WaitOption
from cli.errors import CliError
from cli.groups import new_app
from cli.job_view import follow_job
from cli.shell import connected, out, print_json
from cli.verdict import print_verdict, shares

versions_app = new_app("Versions of a profile.")

NumberArgument = Annotated[int, typer.Argument(help="Number of the version.")]
VersionOption = Annotated[
    int | None, typer.Option(help="Number of the version; by default the one in use, else the latest ready one.")
]


@versions_app.command()
def versions(context: typer.Context, name: NameArgument) -> None:
    """List a profile's versions, newest first.

    Example: alignez profiles versions cheerful
    """
    with connected(context) as (shell, client):
        aliases: dict[str, dict[str, float]] = client.call("GET", profile_path(name))["aliases"]
        rows = client.all(f"{profile_path(name)}/versions")
    shell.table(
        rows,
        {
            "version": "number",
            "state": "state",
            "quality": "quality",
            "in use as": lambda row: ", ".join(name for name, to in aliases.items() if str(row["number"]) in to),
            "method": "method",
            "layers": lambda row: len(row["layers"] or []),
            "sha256": lambda row: (row["sha256"] or "")[:12],
            "created": lambda row: row["created_at"][:19],
        },
        "no versions",
    )


@versions_app.command()
def promote(
    context: typer.Context,
    name: NameArgument,
    version: NumberArgument,
    force: Annotated[bool, typer.Option("--force", help="Promote a weak version too.")] = False,
) -> None:
    """Make a ready version the default; a weak one needs --force.

    Example: alignez profiles promote cheerful 2
    """
    with connected(context) as (shell, client):
        try:
            row = client.call("POST", f"{profile_path(name)}/promote", {"version": version, "force": force})
        except ApiError as error:
            raise explain_weak(error, name) from None
    shell.say(row, f"{name} → version {shares(row['targets'])}")


@versions_app.command()
def rollback(context: typer.Context, name: NameArgument) -> None:
    """Restore the previous default version.

    Example: alignez profiles rollback cheerful
    """
    with connected(context) as (shell, client):
        row = client.call("POST", f"{profile_path(name)}/rollback")
    shell.say(row, f"{name} → version {shares(row['targets'])}")


@versions_app.command()
def archive(context: typer.Context, name: NameArgument, version: NumberArgument) -> None:
    """Archive a version permanently; refused while an alias or an end user has it.

    Example: alignez profiles archive cheerful 1
    """
    with connected(context) as (shell, client):
        row = client.call("POST", f"{profile_path(name)}/versions/{version}/archive")
    shell.say(row, f"archived version {version} of {name}")


@versions_app.command()
def evaluate(
    context: typer.Context,
    name: NameArgument,
    version: VersionOption = None,
    judge: Annotated[
        str | None, typer.Option(help="self, nano, openai, model:PATH or reward:PATH.", show_default=False)
    ] = None,
    held_out: Annotated[int | None, typer.Option(help="Held-out queries.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the answers.", show_default=False)] = None,
    wait: WaitOption = True,
) -> None:
    """Evaluate a version again with another judge, seed or number of queries; the version does not change.

    Example: alignez profiles evaluate cheerful --judge self --seed 1
    """
    asked = {"judge": judge, "held_out_queries": held_out, "seed": seed}
    with connected(context) as (shell, client):
        path = _version_path(client, name, version)
        body = {setting: value for setting, value in asked.items() if value is not None}
        made = client.call("POST", f"{path}/evaluate", body)
        job = made["job"]
        if not wait:
            shell.say(made, f"queued; watch it with: alignez jobs watch {job['id']}")
            return
        shell.progress.print(f"evaluating {name}, version {job['version']} (job {job['id']})", markup=False)
        follow_job(client, job["id"], shell.progress)
        proof = client.call("GET", f"{path}/report", judge=judge)
    if shell.as_json:
        print_json(proof)
    else:
        print_verdict(out, proof)


@versions_app.command()
def report(
    context: typer.Context,
    name: NameArgument,
    version: VersionOption = None,
    judge: Annotated[str | None, typer.Option(help="Show the latest proof by this judge.", show_default=False)] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the page with pictures to this file.")
    ] = None,
) -> None:
    """Print the latest proof of a version, or write it as a page with --html.

    Example: alignez profiles report cheerful --html report.html
    """
    with connected(context) as (shell, client):
        path = f"{_version_path(client, name, version)}/report"
        if html is not None:
            _write(html, client.page(path, judge=judge, format="html"))
            if not shell.as_json:
                out.print(f"wrote {html}", markup=False)
                return
        proof = client.call("GET", path, judge=judge)
    if shell.as_json:
        print_json(proof)
        return
    out.print(f"{proof['profile']}, version {proof['version']}", markup=False)
    print_verdict(out, proof)


@versions_app.command()
def pairs(
    context: typer.Context,
    name: NameArgument,
    version: VersionOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most queries to show; all by default.")] = None,
) -> None:
    """Show the fit queries of a version with their preferred and dispreferred answers.

    Example: alignez profiles pairs cheerful --limit 5
    """
    with connected(context) as (shell, client):
        rows = client.all(f"{_version_path(client, name, version)}/pairs", limit)
    if shell.as_json:
        print_json(rows)
        return
    for row in rows:
        dropped = f"   (not used: {row['dropped']})" if row["dropped"] else ""
        out.print(f"{row['position']}  {row['query']}{dropped}", style="bold", markup=False)
        for mark, answer in (("+", row["help_response"]), ("-", row["harm_response"])):
            if answer:
                out.print(f"   {mark} {' '.join(answer.split())}", markup=False)
    if not rows:
        out.print("no fit queries")


def explain_weak(error: ApiError, name: str) -> ApiError:
    """Adds the command that shows the proof to the refusal of a weak version; leaves other refusals unchanged."""
    if error.code != "version_weak":
        return error
    proof = f"alignez profiles report {name} --version {error.details['number']}"
    error.args = (f"{error} (here --force); `{proof}` shows the proof",)
    return error


def _version_path(client: Client, name: str, version: int | None) -> str:
    """Path of the given version, or of the one in use, or of the latest ready one.

    Raises: CliError: no version is ready.
    """
    if version is None:
        targets = client.call("GET", profile_path(name))["aliases"].get("default") or {}
        if len(targets) == 1:
            version = int(next(iter(targets)))
        else:
            rows = client.rows(f"{profile_path(name)}/versions")
            version = next((int(row["number"]) for row in rows if row["state"] == "ready"), None)
    if version is None:
        raise CliError(f"{name} has no version that is ready; `alignez profiles versions {name}` lists them")
    return f"{profile_path(name)}/versions/{version}"


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
