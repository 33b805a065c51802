"""The whole stack under full load for half an hour while profiles come and go: `make soak`, `make soak-vllm`.

    python -m bench.soak --minutes 30 [--engine vllm]        (vllm: in the environment of vLLM)

It starts the real stack (`alignez up` in a temporary directory, the shipped model), makes tenants and lasting
profiles, asks every pair of lasting version and question alone, and then keeps `--streams` requests in flight: chats
and text completions, streamed or whole, greedy or sampled with a seed, ragged prompts and lengths, with the base model
or any profile, named in every way there is; some clients hang up. Fewer rows (`--rows`) than streams, and half of the
clients one tenant's, so that requests wait and tenants take turns. Meanwhile profiles are fitted, promoted, rolled
back, put on a canary, archived and deleted, also under requests in flight.

Afterwards everything else that was answered is asked alone, deleted profiles too: they are brought back by SQL, past
the triggers, which is possible only because nothing is ever removed. Judged: each answer against its solo run
(`bench.soak_answers` has the rule and its only excuse), whom it was answered as, failures, requests and jobs that did
not end, processes that died, growth of memory, open files and threads (`bench.soak_memory` has the limits), time to
first token. The exit code is 1 when a judgement fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.soak_answers import AnswerBook, Identity, Wrong, explain
from bench.soak_churn import Churn, lasting_spec
from bench.soak_load import Alone, Load, NotAnswered, fill
from bench.soak_memory import Watch
from bench.soak_report import findings, plot, write
from bench.soak_stack import StackDatabase, gauges, make_tenants, until_idle
from bench.soak_world import World, make_questions
from cli.config import RunInfo
from cli.local_stack.background import BackgroundStack

OUT = Path("artifacts/bench")
#: Differences that are looked into.
_EXPLAINED = 60
#: The API's caches of versions and plans are full, and evict, from the first minutes on: what grows later is a leak.
_PLAN_CACHE = 24
_VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Options:
    """How a soak runs; the command line says what each is."""

    minutes: float = 30.0
    engine: str = "transformers"
    streams: int = 64
    rows: int = 48
    tenants: int = 4
    questions: int = 24
    lasting: int = 8
    fit_queries: int = 32
    administrators: int = 2
    pause_s: float = 6.0
    deadline_s: float = 120.0
    solo_minutes: float = 30.0
    seed: int = 0


@dataclass
class Outcome:
    """All that a soak found out, before it is judged."""

    options: Options
    book: AnswerBook
    load: Load
    churn: Churn
    watch: Watch
    seconds: float = 0.0
    #: Seconds since the load began and the API's count of generated tokens at that time.
    tokens: list[tuple[float, float]] = field(default_factory=list)
    unanswered: int = 0
    busy: float = 0.0
    open_jobs: int = 0
    unsent: int = 0
    misowned: list[str] = field(default_factory=list)
    changed_alone: list[str] = field(default_factory=list)
    #: Solo runs that failed, and whatever kept the soak itself from going on.
    errors: list[str] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)


def run(options: Options, say: bool = True, logs: Path | None = None) -> Outcome:
    """Starts a stack, soaks it, and takes everything down again, whatever happens.

    Args:
        say: print progress. logs: where the processes' logs are copied to.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALIGNEZ_")}
    environment |= {"ALIGNEZ_API_ENGINE": options.engine, "ALIGNEZ_API_MAX_RUNNING": str(options.rows)}
    environment |= {"ALIGNEZ_API_PLAN_CACHE_SIZE": str(_PLAN_CACHE), "ALIGNEZ_API_LOG_LEVEL": "warning"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    if options.engine == "vllm":
        environment = _VLLM | environment
    report = _Progress(say)
    with tempfile.TemporaryDirectory(prefix="alignez-soak-") as folder:
        Path(folder).chmod(0o755)  # as root, Postgres runs as somebody else
        stack = BackgroundStack(Path(folder) / "data", env=environment)
        try:
            with stack as info:
                report.line("the stack is up")
                return asyncio.run(_soak(options, info, stack.data_dir, report))
        finally:
            if logs is not None and (stack.data_dir / "logs").is_dir():
                shutil.copytree(stack.data_dir / "logs", logs, dirs_exist_ok=True)


async def _soak(options: Options, info: RunInfo, data_dir: Path, report: _Progress) -> Outcome:
    timeout = httpx.Timeout(options.deadline_s)
    async with httpx.AsyncClient(base_url=info.url, timeout=timeout, trust_env=False) as client:
        tenant_ids, keys = await make_tenants(client, info, options.tenants)
        questions = make_questions(options.questions)
        world = World(keys, questions, churn_questions=2, seed=options.seed)
        book = AnswerBook()
        churn = Churn(client, world, keep=3, job_deadline_s=max(180.0, options.deadline_s))
        load = Load(world, book, int(info.url.rsplit(":", 1)[1]), options.deadline_s)
        outcome = Outcome(options, book, load, churn, Watch())
        for i in range(options.lasting):
            await churn.lasting(
                i % options.tenants, f"lasting-{i // options.tenants}", lasting_spec(i, options.fit_queries)
            )
        report.line(f"{options.lasting} lasting profiles are fitted")

        database = StackDatabase(data_dir)
        before = Alone(client, world, _places(database, tenant_ids))
        planned = _planned(world)
        until = time.monotonic() + 60 * options.solo_minutes
        outcome.errors += await fill(book, before, planned, until, report.counter("asked alone"))

        await _load_and_churn(outcome, info, data_dir, client, report)
        try:
            await _compare(outcome, client, database, tenant_ids, planned, report)
        except Exception as error:  # what half an hour has shown must not be lost
            outcome.errors.append(f"the comparison ended early: {error!r}")
        outcome.wrong = outcome.wrong or book.wrong()
        return outcome


async def _compare(
    outcome: Outcome,
    client: httpx.AsyncClient,
    database: StackDatabase,
    tenant_ids: list[str],
    planned: list[Identity],
    report: _Progress,
) -> None:
    """Everything that needs the service idle again: the database's truth, the solo runs, and what differs from them."""
    book, load, world = outcome.book, outcome.load, outcome.load.world
    stored = {(tenant_ids.index(v.tenant_id), v.profile, v.number, v.sha256) for v in database.versions()}
    outcome.misowned = [f"{owner}: {count}" for owner, count in load.owners.items() if owner not in stored]
    outcome.open_jobs, outcome.unsent = database.unfinished()
    database.restore()
    alone = Alone(client, world, _places(database, tenant_ids))
    missing = book.without_reference()
    report.line(f"{len(missing)} kinds of answer of profiles that came and went are asked alone")
    until = time.monotonic() + 60 * outcome.options.solo_minutes
    outcome.errors += await fill(book, alone, missing, until, report.counter("asked alone"))
    known = book.references()
    outcome.wrong = book.wrong()
    try:
        for wrong in outcome.wrong[:_EXPLAINED]:
            await explain(wrong, world.questions[wrong.identity.question].temperature, alone.ask)
        for identity in planned[:: max(1, len(planned) // 24)]:
            if identity in known and await alone.answer(identity) != known[identity]:
                outcome.changed_alone.append(str(identity))
    except NotAnswered as error:
        outcome.errors.append(str(error))


async def _load_and_churn(
    outcome: Outcome, info: RunInfo, data_dir: Path, client: httpx.AsyncClient, report: _Progress
) -> None:
    options, load, churn = outcome.options, outcome.load, outcome.churn
    seconds = 60 * options.minutes
    churning = [asyncio.create_task(churn.run(options.tenants, options.pause_s)) for _ in range(options.administrators)]
    watching = asyncio.create_task(_watch(outcome, data_dir, client, report))
    try:
        try:
            outcome.unanswered = await load.run(options.streams, seconds, options.deadline_s + 10)
        finally:
            outcome.seconds = time.perf_counter() - load.started
            churn.stop()
        outcome.busy = await until_idle(client, info, 15)
        await asyncio.gather(*churning, return_exceptions=True)
    except Exception as error:
        outcome.errors.append(f"the load ended early: {error!r}")
    finally:
        for task in (*churning, watching):
            task.cancel()
        results = await asyncio.gather(*churning, watching, return_exceptions=True)
    outcome.errors += [repr(result) for result in results if isinstance(result, Exception)]


async def _watch(outcome: Outcome, data_dir: Path, client: httpx.AsyncClient, report: _Progress) -> None:
    """Samples memory and tokens, and prints a line a minute."""
    seconds = 60 * outcome.options.minutes
    every_s = min(5.0, seconds / 40)
    line_every_s = 60.0 if seconds >= 120 else 10.0
    lines = 0
    started = time.perf_counter()
    while True:
        at_s = time.perf_counter() - started
        info = RunInfo.read(data_dir)
        if info is not None and at_s <= seconds:
            await asyncio.to_thread(outcome.watch.sample, at_s, info.pids)
            with contextlib.suppress(httpx.HTTPError):
                outcome.tokens.append((at_s, (await gauges(client, info)).get("generation_tokens_total", 0)))
        if at_s >= (lines + 1) * line_every_s:
            lines += 1
            report.progress(outcome, at_s)
        await asyncio.sleep(max(0.0, every_s - (time.perf_counter() - started - at_s)))


def _planned(world: World) -> list[Identity]:
    """What is asked alone beforehand: every question of the base model and of each lasting profile."""
    identities = [Identity(None, None, None, question.number) for question in world.questions]
    for profile in world.profiles:
        for question in world.questions:
            identities.append(Identity(profile.tenant, profile.versions[1], None, question.number))
            if question.number % 4 == 0:
                identities.append(Identity(profile.tenant, profile.versions[1], 0.5, question.number))
    return identities


def _places(database: StackDatabase, tenant_ids: list[str]) -> dict[tuple[int, str], tuple[str, int]]:
    return {(tenant_ids.index(v.tenant_id), v.sha256): (v.profile_id, v.number) for v in database.versions()}


class _Progress:
    def __init__(self, say: bool) -> None:
        self._say = say
        self._began = time.monotonic()

    def line(self, text: str) -> None:
        if self._say:
            print(f"{time.monotonic() - self._began:6.0f} s  {text}", flush=True)

    def counter(self, what: str) -> _Counter:
        return _Counter(self, what)

    def progress(self, outcome: Outcome, at_s: float) -> None:
        load, tokens = outcome.load, outcome.tokens
        failed = {name: count for name, count in load.outcomes.items() if not name.startswith(("answered", "left"))}
        sizes = {role: f"{series.usages[-1].rss:.0f}" for role, series in outcome.watch.series.items() if series.usages}
        speed = (tokens[-1][1] - tokens[0][1]) / max(1e-9, tokens[-1][0] - tokens[0][0]) if len(tokens) > 1 else 0.0
        self.line(
            f"load {at_s:.0f} s: {load.outcomes.total()} requests, {speed:.0f} tokens/s, wrong so far "
            f"{outcome.book.known_wrong}, not answered {failed or 'none'}, fits {dict(outcome.churn.jobs)}, deleted "
            f"{outcome.churn.done['profiles deleted']}, RSS MiB {' '.join(f'{r} {m}' for r, m in sizes.items())}"
        )


class _Counter:
    def __init__(self, progress: _Progress, what: str) -> None:
        self._progress = progress
        self._what = what

    def __call__(self, count: int) -> None:
        if count % 100 == 0:
            self._progress.line(f"{count} {self._what}")


def main() -> None:
    """The command line."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=default.minutes, help="of load (default %(default)s)")
    add("--engine", choices=("transformers", "vllm"), default=default.engine)
    add("--streams", type=int, default=default.streams, help="requests in flight (default %(default)s)")
    add("--rows", type=int, default=default.rows, help="of them at once in the batch (default %(default)s)")
    add("--tenants", type=int, default=default.tenants)
    add("--questions", type=int, default=default.questions, help="different requests (default %(default)s)")
    add("--lasting", type=int, default=default.lasting, help="profiles that stay (default %(default)s)")
    add("--fit-queries", type=int, default=default.fit_queries, help="of a lasting profile (default %(default)s)")
    add("--administrators", type=int, default=default.administrators, help="that make and delete profiles")
    add(
        "--pause-s",
        type=float,
        default=default.pause_s,
        help="between one's profiles, on average (default %(default)s)",
    )
    add("--deadline-s", type=float, default=default.deadline_s, help="a request that takes longer is stuck")
    add("--solo-minutes", type=float, default=default.solo_minutes, help="at most for solo runs, before and after")
    add("--seed", type=int, default=default.seed)
    add("--out", type=Path, default=OUT, help="folder of soak.json, soak.svg, soak-logs (%(default)s)")
    given = vars(parser.parse_args())
    out: Path = given.pop("out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome = run(Options(**given), logs=out / "soak-logs")
    except KeyboardInterrupt:
        print("stopped; nothing is left running", file=sys.stderr)
        sys.exit(130)
    found = findings(outcome)
    found.print()
    print(f"written to {write(found, outcome, out)} and {plot(found, outcome, out)}")
    sys.exit(1 if found.failed else 0)


if __name__ == "__main__":
    main()
