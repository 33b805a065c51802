"""What all commands share: how an app is built, how errors look, how tables look, the options of a client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from cli.client import Client
from cli.config import resolve_connection
from cli.errors import CliError
from cli.local_stack.errors import StackError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def new_console() -> Console:
    """A console that wraps long lines, for tables of prose; 100 columns where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=100)


UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="ALIGNEZ_URL", help="Server, by default the local stack's.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="ALIGNEZ_KEY", help="API key, by default the local stack's.", show_envvar=True),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="ALIGNEZ_DATA_DIR",
        help="Data directory of the local stack; ~/.local/share/alignez by default.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]


class _PlainErrors(TyperGroup):
    """Turns every foreseen error into one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CliError, StackError) as error:
            fail(str(error))
        except Exception as error:
            if not _is_ours(error):
                raise
            advice = "; check ALIGNEZ_DATABASE_URL" if type(error).__name__ == "DatabaseUnavailable" else ""
            fail(f"{error}{advice}")


def new_app(help_text: str) -> typer.Typer:
    """A typer app (or group of commands) in our manners."""
    return typer.Typer(
        help=help_text,
        cls=_PlainErrors,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def fail(message: str) -> None:
    """Print an error and end with exit code 1."""
    err.print(Text.assemble(("error: ", "bold red"), message))
    raise typer.Exit(1)


def connect(url: str | None, key: str | None, data_dir: Path | None) -> Client:
    """A client for the server that the options, the environment or the local stack name.

    Raises: CliError: there is none.
    """
    return Client(resolve_connection(url, key, data_dir))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows under headings, or the sentence `empty` when there are none."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    if table.row_count:
        print_uncut(out, table)
    else:
        out.print(empty)


def print_uncut(console: Console, table: Table) -> None:
    """A table that is as wide as its content: ids must not be cut, because people copy them."""
    # Not print's own `width`: rich takes the console's where that is smaller, as it is in a pipe.
    Console(file=console.file, highlight=False, soft_wrap=True, width=1000).print(table)


def _is_ours(error: Exception) -> bool:
    """Errors of the libraries were written for people too; imported here, because most commands need neither."""
    import sys

    for module, name in (("profiles.errors", "ProfilesError"), ("alignez_core.errors", "AlignezError")):
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return True
    return False
