"""`alignez up`: the whole product on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.client import Client
from cli.config import Connection, RunInfo, default_data_dir
from cli.errors import CliError
from cli.local_stack import exec_guard
from cli.shell import shell_of


def up(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the REST API; 0: a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    model: Annotated[
        str | None,
        typer.Option(
            envvar="ALIGNEZ_MODEL",
            help="Name from `alignez models list` (added if missing), .gguf file, model directory or Hugging Face id; "
            "nano, the shipped model, by default.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of fit processes.")] = 1,
) -> None:
    """Start database, broker, relay, worker and API on this machine, and run them until Ctrl-C.

    Data, key and ports survive restarts. A process that ends is started again. ALIGNEZ_DATABASE_URL and
    ALIGNEZ_BROKER_URL name servers of your own, which replace the embedded ones.

    Example: alignez up --model smollm2-135m --port 8080
    """
    from cli.local_stack.stack import LocalStack, run_until_signal

    shell = shell_of(context)
    directory = (shell.data_dir or default_data_dir()).expanduser().absolute()
    _prepare_model(model, directory, as_json=shell.as_json)

    def report(line: str) -> None:
        shell.progress.print(f"  {line}", markup=False)

    stack = LocalStack(directory, report, host, port, model, workers)

    def ready(run: RunInfo) -> None:
        key = stack.key_file.read_text(encoding="utf-8").strip()
        with Client(Connection(run.url, key)) as client:
            base_model = client.base_model()
        shell.say(asdict(run), ready_text(run, directory, base_model, key if stack.key_is_new else None))

    run_until_signal(stack, ready)
    shell.progress.print("stopped; the data stays in", str(directory), markup=False)


def _prepare_model(model: str | None, data_dir: Path, *, as_json: bool) -> None:
    """Adds a model of the catalogue or a GGUF file to the stack's cache; checks that a directory holds a model.

    Another process adds the model, so that this one, which lives as long as the stack, does not load torch. That
    process ends with this one.

    Raises: CliError: there is no model at the path.
        typer.Exit: the model could not be added; the other process has printed the error.
    """
    from alignez_core.models.catalogue import in_catalogue
    from alignez_core.models.resolve import is_gguf

    if model is not None and (in_catalogue(model) or is_gguf(model)):
        command = [sys.executable, "-m", "cli.main", "models", "add", model, "--data-dir", str(data_dir)]
        guard = [sys.executable, "-I", "-S", exec_guard.__file__, str(os.getpid()), str(int(signal.SIGTERM))]
        output = None
        if as_json:  # stdout is for this process's one document
            command.append("--json")
            output = subprocess.DEVNULL
        if subprocess.run([*guard, "-1", "-1", "-1", "--", *command], stdout=output).returncode != 0:
            raise typer.Exit(1)
        return
    if model is None or not (model.startswith((".", "~", "/")) or Path(model).expanduser().exists()):
        return
    if not (Path(model).expanduser() / "config.json").is_file():
        raise CliError(
            f"no model in {model} (there is no config.json): set --model or ALIGNEZ_MODEL to a name from "
            "`alignez models list`, a .gguf file, a model directory or a Hugging Face id"
        )


def ready_text(run: RunInfo, directory: Path, model: str, new_key: str | None) -> str:
    """Text for the user of a stack that is ready. new_key: the key that this start made, which is shown once."""
    file = run.key_file
    key = f"{new_key}   (shown only now; stored in {file})" if new_key else f"in {file}   (show it: cat {file})"
    lines = [
        "",
        f"REST API   {run.url}   (docs: {run.url}/docs, OpenAI clients: base_url={run.url}/v1)",
        f"key        {key}",
        f"metrics    {run.metrics_url}",
        f"data, logs {directory}",
        "",
        "alignez profiles create cheerful --preferred 'cheerful and warm' --dispreferred 'gloomy and cold'",
        "alignez chat --profile cheerful",
        f"""curl {run.url}/v1/chat/completions -H "Authorization: Bearer $(cat {file})" \\""",
        """  -H 'Content-Type: application/json' \\""",
        f"""  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "How do I start hiking?"}}]}}'""",
        "",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)
