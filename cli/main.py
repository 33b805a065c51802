"""The `alignez` command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.admin import audit, usage
from cli.commands.aliases import aliases_app
from cli.commands.chat import chat
from cli.commands.compare import compare
from cli.commands.dead_letters import dead_letters_app
from cli.commands.demo import demo
from cli.commands.doctor import doctor
from cli.commands.env import env
from cli.commands.jobs import jobs_app
from cli.commands.keys import keys_app
from cli.commands.models import models_app
from cli.commands.profiles import profiles_app
from cli.commands.roles import api, migrate, relay, worker
from cli.commands.up import up
from cli.commands.users import users_app
from cli.commands.versions import versions_app
from cli.groups import new_app
from cli.shell import Shell, out

app = new_app("Personalised answers from one frozen language model, without training.", root=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(version("alignez"), markup=False)
        raise typer.Exit


_EVERYWHERE = "Options of every command (before or after its name)"


@app.callback()
def _options(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(envvar="ALIGNEZ_URL", help="Server; the local stack's by default.", rich_help_panel=_EVERYWHERE),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(envvar="ALIGNEZ_KEY", help="API key; the local stack's by default.", rich_help_panel=_EVERYWHERE),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Data directory of the local stack; by default ALIGNEZ_DATA_DIR, else ~/.local/share/alignez.",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="For scripts: one JSON document on stdout; progress and JSON errors on stderr.",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Personalised answers from one frozen language model, without training."""
    context.obj = Shell(url, key, data_dir, as_json)


_LOCAL = "One machine"
_CLIENT = "Talk to a running server"
_ROLES = "Single processes (production)"


def _add(panel: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(rich_help_panel=panel)(command)


_add(_LOCAL, up, demo, env, doctor)
app.add_typer(models_app, name="models", rich_help_panel=_LOCAL)
_add(_CLIENT, chat, compare, usage, audit)
profiles_app.add_typer(versions_app)
app.add_typer(profiles_app, name="profiles", rich_help_panel=_CLIENT)
app.add_typer(aliases_app, name="aliases", rich_help_panel=_CLIENT)
app.add_typer(users_app, name="users", rich_help_panel=_CLIENT)
app.add_typer(jobs_app, name="jobs", rich_help_panel=_CLIENT)
app.add_typer(keys_app, name="keys", rich_help_panel=_CLIENT)
_add(_ROLES, migrate, api, worker, relay)
app.add_typer(dead_letters_app, name="dead-letters", rich_help_panel=_ROLES)

if __name__ == "__main__":
    app()
