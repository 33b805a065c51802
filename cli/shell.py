"""The options that every command takes, and the printing of answers for people (text) and scripts (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Client
from cli.config import resolve_connection

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Shell:
    """The options that every command takes, and what follows from them. Commands find it with `shell_of`.

    Args:
        url, key: server; None: the running local stack's.
        data_dir: of the local stack; None: the default one.
        as_json: print one JSON document on stdout and nothing else; progress goes to stderr.
    """

    url: str | None = None
    key: str | None = None
    data_dir: Path | None = None
    as_json: bool = False

    @property
    def progress(self) -> Console:
        """Console for lines that are not the answer."""
        return err if self.as_json else out

    def connect(self) -> Client:
        """A client for the server that the options, the environment or the local stack name.

        Raises: CliError: there is none.
        """
        return Client(resolve_connection(self.url, self.key, self.data_dir))

    def say(self, data: object, *lines: str) -> None:
        """Print an answer: `data` as JSON, else the lines."""
        if self.as_json:
            print_json(data)
            return
        for line in lines:
            out.print(line, markup=False)

    def table(
        self, data: list[dict[str, Any]], columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str
    ) -> None:
        """Print a list: `data` as JSON, else the rows under headings, or the sentence `empty` when there are none."""
        if self.as_json:
            print_json(data)
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
        if table.row_count:
            print_uncut(out, table)
        else:
            out.print(empty, markup=False)


def shell_of(context: typer.Context) -> Shell:
    """The shell of a running command."""
    shell: Shell = context.obj
    return shell


def new_console(*, stderr: bool = False) -> Console:
    """A console that wraps long lines, for tables of prose; 100 columns where there is no terminal."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=100)


def print_json(data: object) -> None:
    """One JSON document on stdout."""
    out.print(json.dumps(data, indent=2, ensure_ascii=False), markup=False, emoji=False)


def print_uncut(console: Console, table: Table) -> None:
    """A table that is as wide as its content: ids must not be cut, because people copy them."""
    # Not print's own `width`: rich takes the console's where that is smaller, as it is in a pipe.
    Console(file=console.file, highlight=False, soft_wrap=True, width=1000).print(table)
