"""`alignez aliases`: names for the versions of a profile, and shares of the traffic."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import ApiError, Client, profile_path
from cli.commands.profiles import NameArgument
from cli.commands.versions import explain_weak
from cli.errors import CliError, usage_error
from cli.groups import new_app
from cli.shell import Shell, connected
from cli.verdict import shares

aliases_app = new_app("Point names at versions of a profile, and share the traffic among several.")

AliasArgument = Annotated[str, typer.Argument(help="Alias; `default` is what a profile's name alone means.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Let the default point to a weak version.")]


@aliases_app.command("list")
def list_(context: typer.Context, name: NameArgument) -> None:
    """List a profile's aliases with the versions that they point to.

    Example: alignez aliases list cheerful
    """
    with connected(context) as (shell, client):
        rows = client.all(f"{profile_path(name)}/aliases")
    shell.table(
        rows,
        {"alias": "alias", "version": lambda row: shares(row["targets"])},
        f"no aliases; make one with `alignez aliases set {name} ALIAS VERSION`",
    )


@aliases_app.command("set")
def set_(
    context: typer.Context,
    name: NameArgument,
    alias: AliasArgument,
    targets: Annotated[
        list[str],
        typer.Argument(metavar="VERSION | VERSION=WEIGHT...", help="One version, or several with weights: 1=90 2=10."),
    ],
    force: ForceOption = False,
) -> None:
    """Point an alias at a version, or at several by weight. Each end user always gets the same version.

    Example: alignez aliases set cheerful beta 2
    """
    body = _target(targets)
    with connected(context) as (shell, client):
        _put(shell, client, name, alias, {**body, "force": force})


@aliases_app.command()
def canary(
    context: typer.Context,
    name: NameArgument,
    version: Annotated[int, typer.Argument(help="The new version.")],
    percent: Annotated[float, typer.Option(min=0.1, max=99.9, help="Share of the traffic for the new version.")] = 10.0,
    alias: Annotated[str, typer.Option(help="Alias whose traffic is shared.")] = "default",
    force: ForceOption = False,
) -> None:
    """Send a share of an alias's traffic to a new version; the present versions get the rest.

    `alignez profiles promote` ends the canary with the new version, `alignez profiles rollback` without it.

    Example: alignez aliases canary cheerful 2 --percent 10
    """
    with connected(context) as (shell, client):
        rows = client.rows(f"{profile_path(name)}/aliases")
        now: dict[str, float] = next((row["targets"] for row in rows if row["alias"] == alias), {})
        others = {number: share for number, share in now.items() if number != str(version)}
        if not others:
            raise CliError(
                f"{alias} of {name} points to no other version than {version}: set it first with "
                f"`alignez aliases set {name} {alias} VERSION`"
            )
        rest = (100 - percent) / sum(others.values())
        weights = {number: share * rest for number, share in others.items()}
        _put(shell, client, name, alias, {"weights": {**weights, str(version): percent}, "force": force})


@aliases_app.command()
def remove(context: typer.Context, name: NameArgument, alias: AliasArgument) -> None:
    """Remove an alias; its versions stay.

    Example: alignez aliases remove cheerful beta
    """
    with connected(context) as (shell, client):
        client.call("DELETE", _path(name, alias))
    shell.say({"alias": alias, "removed": True}, f"removed {name}:{alias}")


def _put(shell: Shell, client: Client, name: str, alias: str, body: dict[str, Any]) -> None:
    try:
        row = client.call("PUT", _path(name, alias), body)
    except ApiError as error:
        raise explain_weak(error, name) from None
    shell.say(row, f"{name}:{alias} → version {shares(row['targets'])}")


def _target(targets: list[str]) -> dict[str, Any]:
    """The request's body. Raises: CliError: the arguments are neither one version nor versions with weights."""
    if len(targets) == 1 and targets[0].isdecimal():
        return {"version": int(targets[0])}
    weights: dict[str, float] = {}
    for target in targets:
        number, _, weight = target.partition("=")
        try:
            weights[str(int(number))] = float(weight)
        except ValueError:
            raise usage_error(
                f"{target!r}: write one version, or several as VERSION=WEIGHT, for example 1=90 2=10"
            ) from None
    return {"weights": weights}


def _path(name: str, alias: str) -> str:
    return f"{profile_path(name)}/aliases/{quote(alias, safe='')}"
