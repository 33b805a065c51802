"""`alignez profiles`: create, inspect, promote, roll back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import Client
from cli.commands.jobs import job_failure
from cli.errors import CliError
from cli.job_view import watch_job
from cli.shell import DataDirOption, JsonOption, KeyOption, UrlOption, connect, new_app, out, print_table
from cli.spec_file import read_json, read_pairs, read_queries, settings_of

profiles_app = new_app("Create, inspect, promote and roll back profiles.")

NameArgument = Annotated[str, typer.Argument(help="Profile, by name or id.")]
NumberArgument = Annotated[int, typer.Argument(help="Number of the version.")]
PreferredOption = Annotated[
    str | None, typer.Option(help="What is wanted, completing: You are a … assistant.", show_default=False)
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
    typer.Option("--fit", metavar="NAME=VALUE", help="Setting of the fit, e.g. method=alignez; may be repeated."),
]
SpecOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The request's body as JSON; other options refine it.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Show the progress until it is ready.")]


@profiles_app.command()
def create(
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
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Create a profile from a persona, from queries, or from ground-truth pairs, and fit its first version."""
    body = _spec_body(preferred, dispreferred, description, query, queries, pairs, fit, spec)
    body["name"] = name
    with connect(url, key, data_dir) as client:
        _finish_fit(client, client.call("POST", "/v1/profiles", body), wait, as_json)


@profiles_app.command()
def refit(
    name: NameArgument,
    preferred: PreferredOption = None,
    dispreferred: DispreferredOption = None,
    description: DescriptionOption = None,
    query: QueryOption = None,
    queries: QueriesOption = None,
    pairs: PairsOption = None,
    fit: FitOption = None,
    spec: SpecOption = None,
    promote: Annotated[bool, typer.Option(help="Make it the default when it is ready.")] = False,
    wait: WaitOption = True,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Fit a new version of a profile; what is not given comes from its latest version."""
    body = _spec_body(preferred, dispreferred, description, query, queries, pairs, fit, spec)
    body["promote"] = promote
    with connect(url, key, data_dir) as client:
        _finish_fit(client, client.call("POST", f"{_path(name)}/versions", body), wait, as_json)


@profiles_app.command("list")
def list_(
    as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None, data_dir: DataDirOption = None
) -> None:
    """List your profiles, newest first."""
    with connect(url, key, data_dir) as client:
        rows = client.all("/v1/profiles")
    if as_json:
        out.print_json(data=rows)
        return
    print_table(
        ["name", "in use", "base model", "created", "id"],
        [[row["name"], _aliases(row), row["base_model"], row["created_at"][:19], row["id"]] for row in rows],
        "no profiles; make one with `alignez profiles create`",
    )


@profiles_app.command()
def show(
    name: NameArgument,
    version: Annotated[int | None, typer.Option(help="Show this version in full.")] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print a profile, or with --version its spec, settings, diagnostics and quality, as JSON."""
    path = _path(name) if version is None else f"{_path(name)}/versions/{version}"
    with connect(url, key, data_dir) as client:
        out.print_json(data=client.call("GET", path))


@profiles_app.command()
def versions(
    name: NameArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List a profile's versions, newest first."""
    with connect(url, key, data_dir) as client:
        profile = client.call("GET", _path(name))
        rows = client.all(f"{_path(name)}/versions")
    if as_json:
        out.print_json(data=rows)
        return
    aliases: dict[str, dict[str, float]] = profile["aliases"]
    print_table(
        ["version", "state", "quality", "in use as", "layers", "sha256", "created"],
        [
            [
                row["number"],
                row["state"],
                row["quality"],
                ", ".join(alias for alias, targets in aliases.items() if str(row["number"]) in targets),
                len(row["layers"] or []),
                (row["sha256"] or "")[:12],
                row["created_at"][:19],
            ]
            for row in rows
        ],
        "no versions",
    )


@profiles_app.command()
def promote(
    name: NameArgument,
    version: NumberArgument,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a ready version the default."""
    with connect(url, key, data_dir) as client:
        row = client.call("POST", f"{_path(name)}/promote", {"version": version})
    out.print(f"{name} → version {_numbers(row)}", markup=False)


@profiles_app.command()
def rollback(name: NameArgument, url: UrlOption = None, key: KeyOption = None, data_dir: DataDirOption = None) -> None:
    """Make the version the default that was so before."""
    with connect(url, key, data_dir) as client:
        row = client.call("POST", f"{_path(name)}/rollback")
    out.print(f"{name} → version {_numbers(row)}", markup=False)


@profiles_app.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Delete a profile: its versions go out of use, its end users get the base model."""
    if not yes:
        typer.confirm(f"Delete profile {name}?", abort=True)
    with connect(url, key, data_dir) as client:
        client.call("DELETE", _path(name))
    out.print(f"deleted {name}", markup=False)


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
    """The request's body from the options. Raises: CliError: a file that cannot be read, a malformed setting."""
    body: dict[str, Any] = read_json(spec) if spec else {}
    given = {"preferred": preferred, "dispreferred": dispreferred, "description": description}
    if persona := {name: value for name, value in given.items() if value is not None}:
        body["persona"] = {**(body.get("persona") or {}), **persona}
    if asked := [*(query or []), *(read_queries(queries) if queries else [])]:
        body["queries"] = [*(body.get("queries") or []), *asked]
    if pairs:
        body["pairs"] = [*(body.get("pairs") or []), *read_pairs(pairs)]
    if fit:
        body["fit"] = {**(body.get("fit") or {}), **settings_of(fit)}
    return body


def _finish_fit(client: Client, made: dict[str, Any], wait: bool, as_json: bool) -> None:
    """Watch a new fit to its end and say how good it is."""
    profile, number, job = made["profile"], made["version"]["number"], made["job"]
    if not wait:
        if as_json:
            out.print_json(data=made)
        else:
            out.print(f"queued; watch it with: alignez jobs watch {job['id']}", markup=False)
        return
    if not as_json:
        out.print(f"fitting {profile['name']}, version {number} (job {job['id']})", markup=False)
    events = client.job_events(job["id"])
    last = list(events)[-1] if as_json else watch_job(out, events)
    if last.get("status") != "succeeded":
        raise CliError(job_failure(client.call("GET", f"/v1/jobs/{job['id']}")))
    version = client.call("GET", f"{_path(profile['id'])}/versions/{number}")
    if as_json:
        out.print_json(data=version)
        return
    reasons = f" ({json.dumps(version['quality_reasons'])})" if version["quality_reasons"] else ""
    out.print(f"ready: version {number}, quality {version['quality']}{reasons}", markup=False)
    out.print(f"try it: alignez chat --profile {profile['name']}", markup=False)


def _path(name: str) -> str:
    return f"/v1/profiles/{quote(name, safe='')}"


def _aliases(row: dict[str, Any]) -> str:
    aliases: dict[str, dict[str, float]] = row["aliases"]
    return ", ".join(f"{alias} → {_numbers({'targets': targets})}" for alias, targets in aliases.items())


def _numbers(row: dict[str, Any]) -> str:
    targets: dict[str, float] = row["targets"]
    if len(targets) == 1:
        return next(iter(targets))
    return " / ".join(f"{number} ({share:.0%})" for number, share in targets.items())
