"""One soak, from the start of its stack to its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg

from bench.soak.answers import AnswerBook, Identity, explain
from bench.soak.churn import Churn
from bench.soak.judge import Options, Outcome, Watch
from bench.soak.load import Alone, Load
from bench.soak.world import World, make_questions
from cli.config import RunInfo
from cli.local_stack.background import BackgroundStack

#: Every version that was ever ready.
_VERSIONS = """
    SELECT p.tenant_id::text, p.id::text, p.name, v.number, v.sha256
    FROM profile_versions v JOIN profiles p ON p.id = v.profile_id WHERE v.sha256 IS NOT NULL
"""
_UNFINISHED = "SELECT (SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')), (SELECT count(*) FROM outbox)"
#: Restores deleted profiles and archived versions under unused names, without the triggers that forbid it.
_RESTORE = """
    SET LOCAL session_replication_role = replica;
    UPDATE profiles SET archived_at = NULL, name = 'was-' || id WHERE archived_at IS NOT NULL;
    UPDATE profile_versions SET state = 'ready', archived_at = NULL WHERE state = 'archived' AND sha256 IS NOT NULL;
"""


def run(options: Options, logs: Path | None = None) -> Outcome:
    """Starts a stack, runs the soak, and stops the stack in any case; copies its logs to `logs`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALIGNEZ_")} | {
        "HF_HUB_OFFLINE": "1",
        "ALIGNEZ_API_ENGINE": options.engine,
        "ALIGNEZ_API_MAX_RUNNING": str(options.rows),
        # Small, so that it is full after minutes: growth after that is a leak.
        "ALIGNEZ_API_PLAN_CACHE_SIZE": "24",
        "ALIGNEZ_API_LOG_LEVEL": "warning",
    }
    with tempfile.TemporaryDirectory(prefix="alignez-soak-") as folder:
        Path(folder).chmod(0o755)  # under root, Postgres runs as another user
        stack = BackgroundStack(Path(folder) / "data", env=environment)
        try:
            with stack as info:
                print("the stack is up", flush=True)
                return asyncio.run(_soak(options, info, stack.data_dir))
        finally:
            if logs is not None and (stack.data_dir / "logs").is_dir():
                shutil.copytree(stack.data_dir / "logs", logs, dirs_exist_ok=True)


async def _soak(options: Options, info: RunInfo, data_dir: Path) -> Outcome:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=info.url, timeout=options.deadline_s, limits=limits, trust_env=False
    ) as client:
        tenant_ids, keys = await _make_tenants(client, info, options.tenants)
        world = World(keys, make_questions(options.questions))
        churn, book = Churn(client, world, max(180.0, options.deadline_s)), AnswerBook()
        outcome = Outcome(options, book, Load(world, book, client, options.deadline_s), churn, Watch())
        for i in range(options.lasting):
            if await churn.make(i % options.tenants, f"lasting-{i}", i, 32, lasting=True) is None:
                raise RuntimeError(f"a lasting profile was not fitted: {churn.failures}")
        places = {(profile.tenant, profile.versions[1]): (profile.id, 1) for profile in world.profiles}
        kinds = [(None, None), *places]
        planned = [Identity(*kind, None, question.number) for kind in kinds for question in world.questions]
        print(f"{options.lasting} lasting profiles are fitted, and asked {len(planned)} questions alone", flush=True)
        outcome.errors += await Alone(client, world, places).fill(book, planned, options.solo_minutes)
        await _load_and_churn(outcome, data_dir)
        try:
            await _compare(outcome, client, data_dir, tenant_ids)
        except Exception as error:  # keep the findings of the load
            outcome.errors.append(f"the comparison ended early: {error!r}")
        return outcome


async def _make_tenants(client: httpx.AsyncClient, info: RunInfo, count: int) -> tuple[list[str], list[str]]:
    """Ids of new tenants, and a member's key of each."""
    operator = {"Authorization": f"Bearer {Path(info.key_file).read_text().strip()}"}

    async def make(path: str, name: str) -> dict[str, Any]:
        reply = await client.post(path, json={"name": name}, headers=operator)
        made: dict[str, Any] = reply.raise_for_status().json()
        return made

    ids = [(await make("/admin/tenants", f"soak-{i}"))["id"] for i in range(count)]
    return ids, [(await make(f"/admin/keys?tenant={id_}", "soak"))["secret"] for id_ in ids]


async def _load_and_churn(outcome: Outcome, data_dir: Path) -> None:
    options, load, churn = outcome.options, outcome.load, outcome.churn
    churning = [asyncio.create_task(churn.run(options.pause_s)) for _ in range(options.administrators)]
    watching = asyncio.create_task(_watch(outcome, data_dir))
    try:
        outcome.unanswered = await load.run(options.streams, 60 * options.minutes)
        outcome.seconds = time.perf_counter() - load.started
        churn.stopping.set()
        await asyncio.gather(*churning)
    except Exception as error:
        outcome.errors.append(f"the load ended early: {error!r}")
    finally:
        for task in (*churning, watching):
            task.cancel()
        results = await asyncio.gather(*churning, watching, return_exceptions=True)
        outcome.errors += [repr(result) for result in results if isinstance(result, Exception)]


async def _watch(outcome: Outcome, data_dir: Path) -> None:
    """Samples memory during the load, and prints a line a minute."""
    seconds = 60 * outcome.options.minutes
    started = said = time.perf_counter()
    while (at_s := time.perf_counter() - started) <= seconds:
        info = RunInfo.read(data_dir)
        await asyncio.to_thread(outcome.watch.sample, at_s, info.pids if info else {})
        if time.perf_counter() - said >= 60:
            said = time.perf_counter()
            print(f"{at_s:.0f} s: {dict(outcome.load.outcomes)}, {dict(outcome.churn.done)}", flush=True)
        await asyncio.sleep(min(5.0, seconds / 40))


async def _compare(outcome: Outcome, client: httpx.AsyncClient, data_dir: Path, tenant_ids: list[str]) -> None:
    """All checks that need an idle service: stored versions, solo runs, and the answers that differ from them."""
    port, password = ((data_dir / "postgres" / name).read_text().strip() for name in ("port", "password"))
    with psycopg.connect(f"host=127.0.0.1 port={port} user=alignez dbname=alignez password={password}") as connection:
        rows = connection.execute(_VERSIONS).fetchall()
        outcome.open_jobs, outcome.unsent = connection.execute(_UNFINISHED).fetchone() or (0, 0)
        connection.execute(_RESTORE)
    book, load = outcome.book, outcome.load
    stored = {(tenant_ids.index(tenant), name, number, sha256) for tenant, _, name, number, sha256 in rows}
    outcome.misowned = [f"{owner}: {count}" for owner, count in load.owners.items() if owner not in stored]
    places = {(tenant_ids.index(tenant), sha256): (id_, number) for tenant, id_, _, number, sha256 in rows}
    alone = Alone(client, load.world, places)
    missing = [identity for identity in book.seen if identity not in book.references]
    missing.sort(key=lambda identity: -book.seen[identity].total())
    print(f"{len(missing)} further kinds of answer are asked alone", flush=True)
    outcome.errors += await alone.fill(book, missing, outcome.options.solo_minutes)
    outcome.wrong = book.wrong()
    for wrong in outcome.wrong[:60]:
        await explain(wrong, load.world.questions[wrong.identity.question].body["temperature"], alone.ask)
