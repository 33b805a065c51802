"""`alignez profiles`: create, fit again, list, show, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client, profile_path
from cli.errors import CliError, usage_error
from cli.groups import new_app
from cli.job_view import follow_job
from cli.shell import Shell, connected, out, print_json, shell_of
from cli.spec_file import read_json, read_pairs, read_queries, settings_of
from cli.verdict import print_verdict, shares

profiles_app = new_app("Create, inspect, prove, promote and roll back profiles.")

NameArgument = Annotated[str, typer.Argument(help="Profile, by name or id.")]
PreferredOption = Annotated[
    str | None, typer.Option(help="The wanted behaviour, completing: You are a … assistant.", show_default=False)
]
DispreferredOption = Annotated[str | None, typer.Option(help="Its opposite.", show_default=False)]
DescriptionOption = Annotated[str | None, typer.Option(help="The persona in free text.", show_default=False)]
QueryOption = Annotated[list[str] | None, typer.Option("--query", help="Query to fit on; may be repeated.")]
QueriesOption = Annotated[
    Path | None,
    typer.Option("--queries", metavar="FILE", help="Queries: one a line, or JSONL with text, preferred, dispreferred."),
]
PairsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSONL with query, preferred and dispreferred answers.")
]
FitOption = Annotated[
    list[str] | None,
    typer.Option("--fit", metavar="NAME=VALUE", help="Setting of the fit, e.g. method=distill; may be repeated."),
]
SpecOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The request's body as JSON; other options refine it.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end and show the progress.")]


@profiles_app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new profile.")],
    preferred: PreferredOption = None,
    dispreferred: DispreferredOption = None,
    description: DescriptionOption = None,
    query: QueryOption = None,
    queries: QueriesOption = None,
    pairs: PairsOption = None,
    fit: FitOption = None,
    spec: SpecOption = None,
    wait: WaitOption = True,
) -> None:
    """Create a profile from a persona, queries or ground-truth pairs, and fit its first version.

    Example: alignez profiles create cheerful --preferred 'cheerful and warm' --dispreferred 'gloomy and cold'
    """
    body = _spec_body(preferred, dispreferred, description, query, queries, pairs, fit, spec)
    body["name"] = name
    with connected(context) as (shell, client):
        _finish_fit(shell, client, client.call("POST", "/v1/profiles", body), wait)


@profiles_app.command()
def refit(
    context: typer.Context,
    name: NameArgument,
    preferred: PreferredOption = None,
    dispreferred: DispreferredOption = None,
    description: DescriptionOption = None,
    query: QueryOption = None,
    queries: QueriesOption = None,
    pairs: PairsOption = None,
    fit: FitOption = None,
    spec: SpecOption = None,
    promote: Annotated[bool, typer.Option(help="Make the version the default if it is good.")] = False,
    wait: WaitOption = True,
) -> None:
    """Fit a new version of a profile; it inherits settings that are not given from the latest version.

    Example: alignez profiles refit cheerful --fit method=alignez --promote
    """
    body = _spec_body(preferred, dispreferred, description, query, queries, pairs, fit, spec)
    body["promote"] = promote
    with connected(context) as (shell, client):
        _finish_fit(shell, client, client.call("POST", f"{profile_path(name)}/versions", body), wait)


@profiles_app.command("list")
def list_(context: typer.Context) -> None:
    """List your profiles, newest first.

    Example: alignez profiles list
    """
    with connected(context) as (shell, client):
        rows = client.all("/v1/profiles")
    shell.table(
        rows,
        {
            "name": "name",
            "in use": lambda row: ", ".join(f"{alias} → {shares(to)}" for alias, to in row["aliases"].items()),
            "base model": "base_model",
            "created": lambda row: row["created_at"][:19],
            "id": "id",
        },
        "no profiles; make one with `alignez profiles create`",
    )


@profiles_app.command()
def show(
    context: typer.Context,
    name: NameArgument,
    version: Annotated[int | None, typer.Option(help="Show this version in full.")] = None,
) -> None:
    """Print a profile, or with --version its spec, settings, diagnostics and quality, as JSON.

    Example: alignez profiles show cheerful --version 2
    """
    path = profile_path(name) if version is None else f"{profile_path(name)}/versions/{version}"
    with connected(context) as (_, client):
        print_json(client.call("GET", path))


@profiles_app.command()
def delete(
    context: typer.Context,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a profile and its versions; its end users get the base model.

    Example: alignez profiles delete cheerful --yes
    """
    shell = shell_of(context)
    if not yes:
        if shell.as_json:
            raise usage_error("a script cannot be asked: pass --yes to delete")
        typer.confirm(f"Delete profile {name}?", abort=True)
    with shell.connect() as client:
        client.call("DELETE", profile_path(name))
    shell.say({"profile": name, "deleted": True}, f"deleted {name}")


def _spec_body(
    preferred: str | None,
    dispreferred: str | None,
    description: str | None,
    query: list[str] | None,
    queries: Path | None,
    pairs: Path | None,
    fit: list[str] | None,
    spec: Path | None,
) -> dict[str, Any]:
    """The request's body from the options. Raises: CliError: a file cannot be read, or a setting is malformed."""
    body: dict[str, Any] = read_json(spec) if spec else {}
    given = {"preferred": preferred, "dispreferred": dispreferred, "description": description}
    if persona := {name: value for name, value in given.items() if value is not None}:
        body["persona"] = {**_part(spec, body, "persona", {}), **persona}
    if asked := [*(query or []), *(read_queries(queries) if queries else [])]:
        body["queries"] = [*_part(spec, body, "queries", []), *asked]
    if pairs:
        body["pairs"] = [*_part(spec, body, "pairs", []), *read_pairs(pairs)]
    if fit:
        body["fit"] = {**_part(spec, body, "fit", {}), **settings_of(fit)}
    return body


def _part(spec: Path | None, body: dict[str, Any], field: str, empty: Any) -> Any:
    """A field of the spec file that an option refines."""
    found = body.get(field) or empty
    if type(found) is not type(empty):
        raise CliError(f"{spec}: {field} must be {'an object' if isinstance(empty, dict) else 'a list'}")
    return found


def _finish_fit(shell: Shell, client: Client, made: dict[str, Any], wait: bool) -> None:
    """Shows the progress of a new fit and prints its verdict."""
    name, number, job = made["profile"]["name"], made["version"]["number"], made["job"]
    if not wait:
        shell.say(made, f"queued; watch it with: alignez jobs watch {job['id']}")
        return
    shell.progress.print(f"fitting {name}, version {number} (job {job['id']})", markup=False)
    follow_job(client, job["id"], shell.progress)
    path = f"{profile_path(made['profile']['id'])}/versions/{number}"
    if shell.as_json:
        print_json(client.call("GET", path))
        return
    proof = client.call("GET", f"{path}/report")
    out.print(f"ready: version {number}", markup=False)
    print_verdict(out, proof)
    if proof["quality"] == "good":
        out.print(f"try it: alignez chat --profile {name}", markup=False)
        return
    out.print(
        f"weak versions are not promoted automatically; try it with: alignez chat --profile {name}#{number}\n"
        f"use it anyway with: alignez profiles promote {name} {number} --force",
        markup=False,
    )
