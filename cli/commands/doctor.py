"""`alignez doctor`: is this installation able to run?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from cli.config import default_data_dir
from cli.shell import DataDirOption, out


def doctor(
    data_dir: DataDirOption = None,
    model: Annotated[
        str | None, typer.Option(envvar="ALIGNEZ_MODEL", help="Model to check; the shipped one by default.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that `alignez up` is to use.")] = 8000,
) -> None:
    """Check this installation, line by line, with what to do where something is wrong. Exit code 1 if anything is."""
    from cli.checks import run_checks

    failed = 0
    for check in run_checks((data_dir or default_data_dir()).expanduser().absolute(), model, port):
        failed += not check.ok
        mark = ("ok    ", "green") if check.ok else ("FAIL  ", "bold red")
        out.print(Text.assemble(mark, f"{check.name}: {check.found}"))
        if not check.ok and check.advice:
            out.print(Text(f"      → {check.advice}"))
    if failed:
        out.print(f"{failed} of the checks failed")
        raise typer.Exit(1)
    out.print("everything is in order")
