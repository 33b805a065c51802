"""The options that every command takes, and the output of answers as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Client
from cli.config import resolve_connection

#: A column of a table: the name of a row's field, or a function of the row.
Column = str | Callable[[dict[str, Any]], object]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Shell:
    """The options that every command takes. Commands get it from `shell_of` or `connected`.

    Args:
        url, key: server and API key; None: those of the running local stack.
        data_dir: data directory of the local stack; None: the default one.
        as_json: print nothing but one JSON document on stdout; progress goes to stderr.
    """

    url: str | None = None
    key: str | None = None
    data_dir: Path | None = None
    as_json: bool = False

    @property
    def progress(self) -> Console:
        """Console for lines that do not belong to the answer."""
        return err if self.as_json else out

    def connect(self) -> Client:
        """A client of the server that the options, the environment or the local stack name.

        Raises: CliError: no server is named.
        """
        return Client(resolve_connection(self.url, self.key, self.data_dir))

    def say(self, data: object, *lines: str) -> None:
        """Prints an answer: `data` as JSON, or the lines."""
        if self.as_json:
            print_json(data)
            return
        for line in lines:
            out.print(line, markup=False)

    def table(self, rows: list[dict[str, Any]], columns: Mapping[str, Column], empty: str) -> None:
        """Prints a list: as JSON, or as a table.

        Args:
            columns: heading → name of a row's field, or a function of the row.
            empty: printed instead of a table without rows.
        """
        if self.as_json:
            print_json(rows)
            return
        table = new_table(columns)
        for row in rows:
            cells = (row[column] if isinstance(column, str) else column(row) for column in columns.values())
            table.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))
        if rows:
            print_uncut(out, table)
        else:
            out.print(empty, markup=False)


def shell_of(context: typer.Context) -> Shell:
    """The shell of a running command."""
    shell: Shell = context.obj
    return shell


@contextmanager
def connected(context: typer.Context) -> Iterator[tuple[Shell, Client]]:
    """The shell of a running command, with a client of its server."""
    shell = shell_of(context)
    with shell.connect() as client:
        yield shell, client


def new_console(*, stderr: bool = False) -> Console:
    """A console that wraps long lines, for tables of prose; 100 columns wide without a terminal."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=100)


def print_json(data: object) -> None:
    """Prints one JSON document on stdout."""
    out.print(json.dumps(data, indent=2, ensure_ascii=False), markup=False, emoji=False)


def new_table(headings: Iterable[str], right: Iterable[str] = (), padding: int = 1) -> Table:
    """An empty table without lines. right: headings of the right-aligned columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, padding))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left")
    return table


def print_uncut(console: Console, table: Table) -> None:
    """Prints a table as wide as its content: ids must not be cut, because users copy them."""
    # Not print's own `width`: rich takes the console's if that is smaller, as it is in a pipe.
    Console(file=console.file, highlight=False, soft_wrap=True, width=1000).print(table)
