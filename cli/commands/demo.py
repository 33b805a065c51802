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
    model: Annotated[
        str | None,
        typer.Option(
            help="`nano`, a name from `alignez models list`, a .gguf file, a directory or a hub id; by default "
            "smollm2-135m if its package can be had, else nano."
        ),
    ] = None,
    preferred: Annotated[str | None, typer.Option(help="The wanted behaviour, as a short phrase.")] = None,
    dispreferred: Annotated[str | None, typer.Option(help="Its opposite.")] = None,
    shown: Annotated[int, typer.Option(min=1, max=12, help="Questions to print side by side.")] = 4,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data directory of the stack; by default a temporary one.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary data directory.")] = False,
) -> None:
    """Do the main job from nothing: start a stack, fit and prove a persona, answer. Nothing is left running.

    Everything goes through the REST API, as your own application would do it. Prints answers of the bare model, of
    the persona as a prompt and of the profile side by side, and the verdict on held-out questions.
    """
    from cli.demo import DemoOptions, run_demo

    console = new_console()
    _check_writable(json_file)
    result = run_demo(DemoOptions(model, preferred, dispreferred, shown, data_dir, keep), console)
    parts = ", ".join(f"{part} {spent:.1f} s" for part, spent in result.seconds.items())
    console.print(f"time: {parts}", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        console.print(f"wrote {json_file}", markup=False)


def _check_writable(path: Path | None) -> None:
    """Raises: CliError: before minutes of work, not after."""
    if path is None:
        return
    try:
        path.touch()
    except OSError as error:
        raise CliError(f"--json {path} cannot be written: {error.strerror}") from None
