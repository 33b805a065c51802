"""`alignez users`: which end user gets which profile."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from cli.shell import DataDirOption, KeyOption, UrlOption, connect, new_app, out

users_app = new_app("Give end users their profiles.")

UserArgument = Annotated[str, typer.Argument(help="The end user, by your own id of them.")]


@users_app.command()
def assign(
    user: UserArgument,
    profile: Annotated[str, typer.Argument(help="Profile, by name or id.")],
    alias: Annotated[str | None, typer.Option(help="Follow this alias instead of the default.")] = None,
    version: Annotated[int | None, typer.Option(help="Pin this version.")] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Answer this user with a profile from now on."""
    body = {"profile": profile, "alias": alias, "version": version}
    with connect(url, key, data_dir) as client:
        row = client.call("PUT", _path(user), {name: value for name, value in body.items() if value is not None})
    out.print(f"{row['user']} → {row['profile']['name']}{_pointer(row)}", markup=False)


@users_app.command()
def show(user: UserArgument, url: UrlOption = None, key: KeyOption = None, data_dir: DataDirOption = None) -> None:
    """Show a user's profile."""
    with connect(url, key, data_dir) as client:
        row = client.call("GET", _path(user))
    out.print(f"{row['user']} → {row['profile']['name']}{_pointer(row)}", markup=False)


@users_app.command()
def unassign(user: UserArgument, url: UrlOption = None, key: KeyOption = None, data_dir: DataDirOption = None) -> None:
    """Answer this user with the bare base model again."""
    with connect(url, key, data_dir) as client:
        client.call("DELETE", _path(user))
    out.print(f"{user} → base model", markup=False)


def _path(user: str) -> str:
    return f"/v1/users/{quote(user, safe='')}/profile"


def _pointer(row: dict[str, object]) -> str:
    if row["alias"]:
        return f":{row['alias']}"
    return f"#{row['version']}" if row["version"] else ""
