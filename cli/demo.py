"""The main job from nothing, through the real REST API: a persona in, personalised answers out, measured."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from alignez_core import nano
from cli.client import ApiError, Client
from cli.config import Connection, RunInfo
from cli.errors import CliError
from cli.job_view import watch_job
from cli.local_stack.background import BackgroundStack
from cli.measurement import StyleShares, ask_all, style_shares

_BAR = 20


@dataclass(frozen=True)
class DemoOptions:
    """What to show.

    Args:
        persona: name of one of persona-nano's, such as "cheerful/gloomy".
        queries: held-out queries to measure on.
        shown: how many of them to print side by side.
        concurrency: requests at once.
        data_dir: of the stack; None: a temporary one.
        keep: leave the temporary one behind.
    """

    persona: str = "cheerful/gloomy"
    queries: int = 100
    shown: int = 4
    concurrency: int = 32
    data_dir: Path | None = None
    keep: bool = False


@dataclass(frozen=True)
class DemoResult:
    """What was measured: shares of styles, seconds per part, the version's quality."""

    persona: str
    base: StyleShares
    personalised: StyleShares
    alignez: StyleShares
    seconds: dict[str, float]
    quality: str
    queries: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Start a stack, fit a persona by both methods, answer, measure, stop the stack.

    Raises: CliError: unknown persona, too many queries, a fit that failed. StackError: the stack did not start.
    """
    persona = _persona(options.persona)
    held_out = nano.held_out_queries()
    if not 1 <= options.queries <= len(held_out):
        raise CliError(f"--queries {options.queries}: there are {len(held_out)} held-out queries, so 1 to that many")
    began = time.monotonic()
    with _data_dir(options, console) as data_dir, _stack(data_dir, console) as run:
        seconds = {"start": time.monotonic() - began}
        connection = Connection(run.url, Path(run.admin_key_file).read_text(encoding="utf-8").strip())
        with Client(connection) as client:
            result = _main_job(options, persona, held_out[: options.queries], client, connection, seconds, console)
    return replace(result, seconds={**result.seconds, "total": round(time.monotonic() - began, 2)})


def _main_job(
    options: DemoOptions,
    persona: nano.NanoPersona,
    queries: list[str],
    client: Client,
    connection: Connection,
    seconds: dict[str, float],
    console: Console,
) -> DemoResult:
    model = client.base_model()
    fit_began = time.monotonic()
    names: dict[str, str | None] = {"base": None}
    quality = ""
    for label, method in (("personalised", "transport"), ("alignez", "alignez")):
        name, quality_of_it = _fit(client, persona, method, console)
        names[label] = name
        quality = quality or quality_of_it
        seconds[f"fit_{method}"] = time.monotonic() - fit_began
        fit_began = time.monotonic()
    answers = _ask(connection, model, queries, names, options.concurrency, console)
    seconds["answers"] = time.monotonic() - fit_began
    _print_answers(console, queries[: options.shown], answers)
    shares = {label: style_shares(persona, answers[label]) for label in names}
    result = DemoResult(
        persona=persona.name,
        base=shares["base"],
        personalised=shares["personalised"],
        alignez=shares["alignez"],
        seconds={part: round(spent, 2) for part, spent in seconds.items()},
        quality=quality,
        queries=len(queries),
    )
    _print_shares(console, persona, shares, len(queries))
    return result


def _persona(name: str) -> nano.NanoPersona:
    for persona in nano.PERSONAS:
        if name.strip().lower() in (persona.name, persona.preferred_style):
            return persona
    known = ", ".join(persona.name for persona in nano.PERSONAS)
    raise CliError(f"--persona {name!r}: the shipped model knows {known}")


@contextlib.contextmanager
def _data_dir(options: DemoOptions, console: Console) -> Iterator[Path]:
    """The given directory, or one that is gone afterwards."""
    if options.data_dir is not None:
        yield options.data_dir.expanduser().absolute()
        return
    directory = Path(tempfile.mkdtemp(prefix="alignez-demo-"))
    directory.chmod(0o711)  # as root, the database runs as a user who has to pass through
    try:
        yield directory
    finally:
        if options.keep:
            console.print(f"kept: alignez up --data-dir {directory}", markup=False)
        else:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _stack(data_dir: Path, console: Console) -> Iterator[RunInfo]:
    # The styles that are measured are the shipped model's; another model in the environment has others.
    environment = {name: value for name, value in os.environ.items() if name not in _MODEL_SETTINGS}
    began = time.monotonic()
    stack = BackgroundStack(data_dir, env=environment)
    with console.status("starting Postgres, Redis, relay, worker and API …"):
        run = stack.__enter__()
    try:
        console.print(f"stack ready at {run.url} ({time.monotonic() - began:.1f} s)", markup=False)
        yield run
    finally:
        with console.status("stopping …"):
            stack.stop()


_MODEL_SETTINGS = frozenset(
    f"ALIGNEZ_{process}{setting}"
    for process in ("", "API_", "WORKER_")
    for setting in ("MODEL", "MODEL_NAME", "MODEL_REVISION", "MLP_PATH", "PROMPT_FORMAT")
)


def _fit(client: Client, persona: nano.NanoPersona, method: str, console: Console) -> tuple[str, str]:
    """Create a profile and watch its fit; returns its name and quality."""
    body: dict[str, Any] = {
        "name": f"{persona.preferred_style}-{method}",
        "persona": {"preferred": persona.preferred, "dispreferred": persona.dispreferred},
        # No queries of the model's own: it can invent one that is then measured as held out.
        "fit": {"method": method, "own_queries": 0},
    }
    try:
        made = client.call("POST", "/v1/profiles", body)
    except ApiError as error:
        if error.status != 409:
            raise
        body["name"] += f"-{os.urandom(3).hex()}"  # a data directory that had a demo before
        made = client.call("POST", "/v1/profiles", body)
    name = str(made["profile"]["name"])
    console.print(f"profile {name}: {persona.preferred}, not {persona.dispreferred} (method {method})", markup=False)
    last = watch_job(console, client.job_events(made["job"]["id"]))
    if last.get("status") != "succeeded":
        error_ = last.get("error") or {}
        raise CliError(f"the fit of {name} {last.get('status')}: {error_.get('message', 'no reason given')}")
    version = client.call("GET", f"/v1/profiles/{name}/versions/{made['version']['number']}")
    reasons = f": {'; '.join(version['quality_reasons'])}" if version["quality_reasons"] else ""
    console.print(f"  quality {version['quality']}{reasons}", markup=False)
    return name, str(version["quality"])


def _ask(
    connection: Connection,
    model: str,
    queries: list[str],
    names: dict[str, str | None],
    concurrency: int,
    console: Console,
) -> dict[str, list[str]]:
    total = len(queries) * len(names)
    console.print(
        f"{len(queries)} held-out queries × {len(names)}, {concurrency} streams at once, one batch", markup=False
    )
    columns = (TextColumn("  {task.description:<16}"), BarColumn(_BAR), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("answers", total=total)
        return ask_all(connection, model, queries, names, concurrency, lambda: progress.advance(task))


def _print_answers(console: Console, queries: list[str], answers: dict[str, list[str]]) -> None:
    table = Table(title="The same question, the same seed", show_lines=True, title_justify="left")
    for heading in ("question", "base model", "alignez (the paper)", "personalised (transport)"):
        table.add_column(heading, ratio=1 if heading == "question" else 2)
    for i, query in enumerate(queries):
        cells = [query, *(answers[label][i] for label in ("base", "alignez", "personalised"))]
        table.add_row(*(Text(cell.strip()) for cell in cells))
    console.print(table)


def _print_shares(console: Console, persona: nano.NanoPersona, shares: dict[str, StyleShares], queries: int) -> None:
    table = Table(title=f"Style of the answers to {queries} held-out queries", title_justify="left")
    table.add_column("")
    table.add_column(persona.preferred_style, no_wrap=True)
    table.add_column(persona.dispreferred_style, no_wrap=True)
    table.add_column("no style", justify="right")
    rows = (("base", "base model"), ("alignez", "alignez (the paper)"), ("personalised", "personalised (transport)"))
    for label, heading in rows:
        row = shares[label]
        table.add_row(heading, _bar(row.preferred, "green"), _bar(row.dispreferred, "red"), f"{row.unrecognised:.2f}")
    console.print(table)


def _bar(share: float, colour: str) -> Text:
    full = round(share * _BAR)
    return Text.assemble((f"{share:.2f} ", "bold"), ("█" * full, colour), ("·" * (_BAR - full), "dim"))
