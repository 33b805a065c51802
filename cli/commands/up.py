"""`alignez up`: the whole product on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.config import RunInfo, default_data_dir
from cli.errors import CliError
from cli.shell import DataDirOption, out


def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the REST API; 0: a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    data_dir: DataDirOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="ALIGNEZ_MODEL", help="Model directory or Hugging Face id; the shipped persona-nano by default."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Fit processes.")] = 1,
) -> None:
    """Start database, broker, relay, worker and API here, and keep them running until Ctrl-C.

    Data, key and ports of the servers survive restarts. A part that dies is started again. With ALIGNEZ_DATABASE_URL
    or ALIGNEZ_BROKER_URL set, that server is used instead of an embedded one.
    """
    from cli.local_stack.stack import LocalStack, StackOptions, run_until_signal

    _check_model(model)
    directory = (data_dir or default_data_dir()).expanduser().absolute()
    options = StackOptions(directory, host, port, model, workers)

    def ready(run: RunInfo) -> None:
        _print_ready(run, directory)

    run_until_signal(LocalStack(options, lambda line: out.print(f"  {line}", markup=False)), ready)
    out.print("stopped; the data stays in", str(directory), markup=False)


def _check_model(model: str | None) -> None:
    """Raises: CliError: a path without a model; found now instead of after two processes have loaded torch."""
    if model is None or not (model.startswith((".", "~", "/")) or Path(model).expanduser().exists()):
        return
    if not (Path(model).expanduser() / "config.json").is_file():
        raise CliError(
            f"no model in {model} (there is no config.json): set --model or ALIGNEZ_MODEL to a model "
            "directory or Hugging Face id"
        )


def _print_ready(run: RunInfo, directory: Path) -> None:
    key = Path(run.admin_key_file).read_text(encoding="utf-8").strip()
    name = _model_name(run.url, key)
    lines = [
        "",
        f"REST API   {run.url}   (docs: {run.url}/docs, OpenAI clients: base_url={run.url}/v1)",
        f"admin key  {key}   (in {run.admin_key_file})",
        f"metrics    {run.metrics_url}",
        f"data, logs {directory}",
        "",
        "alignez profiles create cheerful --preferred 'cheerful and warm' --dispreferred 'gloomy and cold'",
        "alignez chat --profile cheerful",
        f"""curl {run.url}/v1/chat/completions -H "Authorization: Bearer $(cat {run.admin_key_file})" \\""",
        """  -H 'Content-Type: application/json' \\""",
        f"""  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "How do I start hiking?"}}]}}'""",
        "",
        "Ctrl-C stops everything.",
    ]
    out.print("\n".join(lines), markup=False)


def _model_name(url: str, key: str) -> str:
    from cli.client import Client
    from cli.config import Connection

    with Client(Connection(url, key)) as client:
        return client.base_model()
