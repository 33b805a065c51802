"""`alignez demo`: fits a persona on a new stack and compares answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cli.shell import new_console, print_json, shell_of


def demo(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="`nano`, a name from `alignez models list`, a .gguf file, a directory or a hub id; by default "
            "smollm2-135m if its package is available, else nano."
        ),
    ] = None,
    preferred: Annotated[str | None, typer.Option(help="The wanted behaviour, as a short phrase.")] = None,
    dispreferred: Annotated[str | None, typer.Option(help="Its opposite.")] = None,
    shown: Annotated[int, typer.Option(min=1, max=12, help="Questions to print side by side.")] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary data directory.")] = False,
) -> None:
    """Start a stack, fit and prove a persona, compare answers, and stop the stack.

    The demo uses the REST API as your own application would. It prints answers of the bare model, of the persona as a
    prompt and of the profile side by side, and the verdict on held-out questions. The stack's data is temporary unless
    --data-dir names a directory.

    Example: alignez demo --model nano --shown 2
    """
    from cli.demo import DemoOptions, run_demo

    shell = shell_of(context)
    console = new_console(stderr=shell.as_json)
    result = run_demo(DemoOptions(model, preferred, dispreferred, shown, shell.data_dir, keep), console)
    parts = ", ".join(f"{part} {spent:.1f} s" for part, spent in result.seconds.items())
    console.print(f"time: {parts}", markup=False)
    if shell.as_json:
        print_json(asdict(result))
