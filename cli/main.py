"""The `alignez` command."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands.chat import chat
from cli.commands.dead_letters import dead_letters_app
from cli.commands.demo import demo
from cli.commands.doctor import doctor
from cli.commands.jobs import jobs_app
from cli.commands.keys import keys_app
from cli.commands.models import models_app
from cli.commands.profiles import profiles_app
from cli.commands.roles import api, migrate, relay, worker
from cli.commands.up import up
from cli.commands.users import users_app
from cli.shell import new_app, out

app = new_app("Personalised answers from one frozen language model, without training.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(version("alignez"), markup=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Personalised answers from one frozen language model, without training."""


_LOCAL = "One machine"
_CLIENT = "Talk to a running server"
_ROLES = "Single processes (production)"

app.command(rich_help_panel=_LOCAL)(up)
app.command(rich_help_panel=_LOCAL)(demo)
app.command(rich_help_panel=_LOCAL)(doctor)
app.add_typer(models_app, name="models", rich_help_panel=_LOCAL)
app.command(rich_help_panel=_CLIENT)(chat)
app.add_typer(profiles_app, name="profiles", rich_help_panel=_CLIENT)
app.add_typer(users_app, name="users", rich_help_panel=_CLIENT)
app.add_typer(jobs_app, name="jobs", rich_help_panel=_CLIENT)
app.add_typer(keys_app, name="keys", rich_help_panel=_CLIENT)
app.command(rich_help_panel=_ROLES)(migrate)
app.command(rich_help_panel=_ROLES)(api)
app.command(rich_help_panel=_ROLES)(worker)
app.command(rich_help_panel=_ROLES)(relay)
app.add_typer(dead_letters_app, name="dead-letters", rich_help_panel=_ROLES)

if __name__ == "__main__":
    app()
