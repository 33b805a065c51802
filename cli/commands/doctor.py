"""`alignez doctor`: checks of this installation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from cli.config import default_data_dir
from cli.shell import out, print_json, shell_of


def doctor(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(envvar="ALIGNEZ_MODEL", help="Model to check; the shipped one by default.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for `alignez up`.")] = 8000,
) -> None:
    """Check this installation and print advice for each problem. Exit status 1 if there is any.

    Example: alignez doctor --model smollm2-135m
    """
    from cli.checks import run_checks

    shell = shell_of(context)
    checks = run_checks((shell.data_dir or default_data_dir()).expanduser().absolute(), model, port)
    if shell.as_json:
        found = list(checks)
        print_json([asdict(check) for check in found])
        raise typer.Exit(not all(check.ok for check in found))
    failed = 0
    for check in checks:
        failed += not check.ok
        mark = ("ok    ", "green") if check.ok else ("FAIL  ", "bold red")
        out.print(Text.assemble(mark, f"{check.name}: {check.found}"))
        if not check.ok and check.advice:
            out.print(Text(f"      → {check.advice}"))
    if failed:
        out.print(f"{failed} of the checks failed")
        raise typer.Exit(1)
    out.print("everything is in order")
