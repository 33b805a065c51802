"""`alignez profiles`: create, inspect, prove, promote, roll back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import ApiError, Client
from cli.commands.jobs import job_failure
from cli.errors import CliError
from cli.job_view import watch_job
from cli.shell import DataDirOption, JsonOption, KeyOption, UrlOption, connect, new_app, out, print_table
from cli.spec_file import read_json, read_pairs, read_queries, settings_of
from cli.verdict import print_verdict

profiles_app = new_app("Create, inspect, prove, promote and roll back profiles.")

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
    typer.Option("--fit", metavar="NAME=VALUE", help="Setting of the fit, e.g. method=distill; may be repeated."),
]
SpecOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The request's body as JSON; other options refine it.")
]
VersionOption = Annotated[
    int | None, typer.Option(help="Number of the version; by default the one in use, else the latest ready one.")
]
JudgeOption = Annotated[
    str | None, typer.Option(help="self, nano, openai, model:PATH or reward:PATH.", show_default=False)
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
    promote: Annotated[bool, typer.Option(help="Make it the default when it is ready and good.")] = False,
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
        ["version", "state", "quality", "in use as", "method", "layers", "sha256", "created"],
        [
            [
                row["number"],
                row["state"],
                row["quality"],
                ", ".join(alias for alias, targets in aliases.items() if str(row["number"]) in targets),
                row["method"],
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
    force: Annotated[bool, typer.Option("--force", help="Also when it is weak.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a ready version the default; a weak one needs --force."""
    with connect(url, key, data_dir) as client:
        try:
            row = client.call("POST", f"{_path(name)}/promote", {"version": version, "force": force})
        except ApiError as error:
            if error.code != "version_weak":
                raise
            proof = f"alignez profiles report {name} --version {version}"
            raise CliError(f"{error} (here --force); `{proof}` shows the proof") from None
    out.print(f"{name} → version {_numbers(row)}", markup=False)


@profiles_app.command()
def rollback(name: NameArgument, url: UrlOption = None, key: KeyOption = None, data_dir: DataDirOption = None) -> None:
    """Restore the previous default version."""
    with connect(url, key, data_dir) as client:
        row = client.call("POST", f"{_path(name)}/rollback")
    out.print(f"{name} → version {_numbers(row)}", markup=False)


@profiles_app.command()
def evaluate(
    name: NameArgument,
    version: VersionOption = None,
    judge: JudgeOption = None,
    held_out: Annotated[int | None, typer.Option(help="Held-out queries.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the answers.", show_default=False)] = None,
    wait: WaitOption = True,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Prove a version again, with another judge, seed or number of queries; the version stays as it is."""
    asked = {"judge": judge, "held_out_queries": held_out, "seed": seed}
    with connect(url, key, data_dir) as client:
        path = _version_path(client, name, version)
        body = {setting: value for setting, value in asked.items() if value is not None}
        job = client.call("POST", f"{path}/evaluate", body)["job"]
        if not wait:
            _print_queued({"job": job}, as_json)
            return
        if not as_json:
            out.print(f"evaluating {name}, version {job['version']} (job {job['id']})", markup=False)
        _watch(client, job["id"], quiet=as_json)
        proof = client.call("GET", f"{path}/report", judge=judge)
    if as_json:
        out.print_json(data=proof)
    else:
        print_verdict(out, proof)


@profiles_app.command()
def report(
    name: NameArgument,
    version: VersionOption = None,
    judge: Annotated[str | None, typer.Option(help="The latest proof by this judge.", show_default=False)] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the page with pictures to this file.")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print the latest proof of a version, or write it as a page with --html."""
    with connect(url, key, data_dir) as client:
        path = f"{_version_path(client, name, version)}/report"
        if html is not None:
            _write(html, client.page(path, judge=judge, format="html"))
            if not as_json:
                out.print(f"wrote {html}", markup=False)
                return
        proof = client.call("GET", path, judge=judge)
    if as_json:
        out.print_json(data=proof)
        return
    out.print(f"{proof['profile']}, version {proof['version']}", markup=False)
    print_verdict(out, proof)


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
    """Watch a new fit to its end and print its verdict."""
    profile, number, job = made["profile"], made["version"]["number"], made["job"]
    if not wait:
        _print_queued(made, as_json)
        return
    if not as_json:
        out.print(f"fitting {profile['name']}, version {number} (job {job['id']})", markup=False)
    _watch(client, job["id"], quiet=as_json)
    path = f"{_path(profile['id'])}/versions/{number}"
    if as_json:
        out.print_json(data=client.call("GET", path))
        return
    proof = client.call("GET", f"{path}/report")
    out.print(f"ready: version {number}", markup=False)
    print_verdict(out, proof)
    name = profile["name"]
    if proof["quality"] == "good":
        out.print(f"try it: alignez chat --profile {name}", markup=False)
        return
    out.print(
        f"weak versions are not promoted by themselves; try it with: alignez chat --profile {name}#{number}\n"
        f"use it all the same with: alignez profiles promote {name} {number} --force",
        markup=False,
    )


def _print_queued(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out.print_json(data=made)
    else:
        out.print(f"queued; watch it with: alignez jobs watch {made['job']['id']}", markup=False)


def _watch(client: Client, job_id: str, *, quiet: bool) -> None:
    """Waits for a job's end. Raises: CliError: it did not succeed."""
    events = client.job_events(job_id)
    last = list(events)[-1] if quiet else watch_job(out, events)
    if last.get("status") != "succeeded":
        raise CliError(job_failure(client.call("GET", f"/v1/jobs/{job_id}")))


def _version_path(client: Client, name: str, version: int | None) -> str:
    """The path of a version: the named one, the one in use, else the latest that is ready.

    Raises: CliError: none is ready.
    """
    if version is None:
        targets = client.call("GET", _path(name))["aliases"].get("default") or {}
        if len(targets) == 1:
            version = int(next(iter(targets)))
        else:
            rows = client.call("GET", f"{_path(name)}/versions", limit=100)["data"]
            version = next((int(row["number"]) for row in rows if row["state"] == "ready"), None)
    if version is None:
        raise CliError(f"{name} has no version that is ready; `alignez profiles versions {name}` lists them")
    return f"{_path(name)}/versions/{version}"


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None


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
