"""`alignez users`: the profiles of end users."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.groups import new_app
from cli.shell import connected

users_app = new_app("Give end users their profiles.")

UserArgument = Annotated[str, typer.Argument(help="Id of the end user in your own system.")]


@users_app.command()
def assign(
    context: typer.Context,
    user: UserArgument,
    profile: Annotated[str, typer.Argument(help="Profile, by name or id.")],
    alias: Annotated[str | None, typer.Option(help="Follow this alias instead of the default.")] = None,
    version: Annotated[int | None, typer.Option(help="Pin this version.")] = None,
) -> None:
    """Assign a profile to an end user.

    Example: alignez users assign ada cheerful --alias beta
    """
    body = {"profile": profile, "alias": alias, "version": version}
    with connected(context) as (shell, client):
        row = client.call("PUT", _path(user), {name: value for name, value in body.items() if value is not None})
    shell.say(row, _sentence(row))


@users_app.command()
def show(context: typer.Context, user: UserArgument) -> None:
    """Show the profile of an end user.

    Example: alignez users show ada
    """
    with connected(context) as (shell, client):
        row = client.call("GET", _path(user))
    shell.say(row, _sentence(row))


@users_app.command()
def unassign(context: typer.Context, user: UserArgument) -> None:
    """Remove the profile of an end user, who gets the bare base model again.

    Example: alignez users unassign ada
    """
    with connected(context) as (shell, client):
        client.call("DELETE", _path(user))
    shell.say({"user": user, "profile": None}, f"{user} → base model")


def _path(user: str) -> str:
    return f"/v1/users/{quote(user, safe='')}/profile"


def _sentence(row: dict[str, Any]) -> str:
    pointer = f":{row['alias']}" if row["alias"] else f"#{row['version']}" if row["version"] else ""
    return f"{row['user']} → {row['profile']['name']}{pointer}"
