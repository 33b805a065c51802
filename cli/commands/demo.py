"""`alignez demo`: the main job from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CliError
from cli.shell import new_console


def demo(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
    persona: Annotated[
        str, typer.Option(help="One of the shipped model's personas, as preferred/dispreferred.")
    ] = "cheerful/gloomy",
    queries: Annotated[int, typer.Option(min=1, help="Held-out queries to measure on.")] = 100,
    shown: Annotated[int, typer.Option(min=0, help="How many of them to print side by side.")] = 4,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 32,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data directory of the stack; by default a temporary one.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary data directory.")] = False,
) -> None:
    """Do the main job from nothing: start a stack, fit a persona, answer, measure. Nothing is left running.

    Everything goes through the REST API, as your own application would do it. Prints answers of the base model, of
    the paper's method (alignez) and of the default method (transport) side by side, and the share of answers in the
    wanted style.
    """
    from cli.demo import DemoOptions, run_demo

    console = new_console()
    _check_writable(json_file)
    options = DemoOptions(persona, queries, min(shown, queries), concurrency, data_dir, keep)
    result = run_demo(options, console)
    parts = ", ".join(f"{part} {spent:.1f} s" for part, spent in result.seconds.items())
    console.print(f"time: {parts}", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        console.print(f"wrote {json_file}", markup=False)


def _check_writable(path: Path | None) -> None:
    """Raises: CliError: before two minutes of work, not after."""
    if path is None:
        return
    try:
        path.touch()
    except OSError as error:
        raise CliError(f"--json {path} cannot be written: {error.strerror}") from None
