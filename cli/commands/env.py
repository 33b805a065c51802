"""`alignez env`: the running stack's address and key as environment variables."""

from __future__ import annotations

import shlex
import time
from typing import Annotated

import typer

from cli.client import is_ready
from cli.config import resolve_connection
from cli.errors import CliError
from cli.shell import out, print_json, shell_of

_POLL_S = 0.5


def env(
    context: typer.Context,
    wait: Annotated[float, typer.Option(min=0, max=3600, help="Seconds to wait until the server is ready.")] = 0,
) -> None:
    """Print `export` lines with ALIGNEZ_URL and ALIGNEZ_KEY of the running stack, for `eval`. It is an operator's key.

    Example: eval "$(alignez env --wait 120)"
    """
    shell = shell_of(context)
    deadline = time.monotonic() + wait
    while True:
        try:
            # Not from the environment, which may describe an earlier stack.
            found = resolve_connection(None, None, shell.data_dir)
            if not wait or is_ready(found.url):
                break
            reason = f"{found.url} is not ready"
        except CliError as error:
            reason = str(error)
        if time.monotonic() >= deadline:
            raise CliError(f"{reason} after {wait:g} s" if wait else reason)
        time.sleep(_POLL_S)
    values = {"ALIGNEZ_URL": found.url, "ALIGNEZ_KEY": found.key}
    if shell.as_json:
        print_json(values)
        return
    for name, value in values.items():
        out.print(f"export {name}={shlex.quote(value)}", markup=False)
