"""The plans of every hot statement in a database as full as `bench.scale` makes it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from alignez_core.engines.fake.engine import FakeEngine
from api.profiles.routes import read_profiles
from bench.plans import Plan, explaining, outline, row_counts
from bench.report import Report
from bench.scale_fill import HIDDEN_SIZE, LAYERS, PER_TENANT, SPEC, runner
from profiles import service
from profiles.fitting import claims as jobs
from profiles.fitting.evaluations import latest_evaluation
from profiles.fitting.request import request_fit
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, UnitOfWork

#: A table is small enough to be read whole below this many rows.
SMALL = 20_000
#: Tenants whose statements are explained, and jobs of each that wait meanwhile: as after a rush, too few of a full
#: table for autovacuum to have counted them yet.
ASKING, WAITING = 200, 5
#: Each use is explained so often, for other tenants each time; the last one counts, with a connection that is warm.
TURNS = 3

Use = Callable[[UnitOfWork, service.Caller, str], object]  #: as which caller, and on which profile


def explain_hot(report: Report, sessions: SessionFactory, database: DatabaseSettings, out: Path) -> None:
    """Explains them, prints a line each, adds what they come to; whole plans go to the file `out`."""
    draw = random.Random(1)
    callers, secrets = _callers(sessions, ASKING)
    for caller in callers:
        with UnitOfWork.open(sessions) as uow:
            for i in range(WAITING):
                request_fit(uow, caller, SPEC, name=f"waiting-{i}")
    found: list[tuple[str, Plan]] = []
    with explaining(database) as (explained, plans):
        for name, use in _uses(secrets).items():
            for _ in range(TURNS):
                plans.clear()
                with UnitOfWork.open(explained) as uow:
                    use(uow, draw.choice(callers), f"p{draw.randrange(PER_TENANT)}")
            found += [(name, plan) for plan in plans]
        plans.clear()
        found += [("a whole fit", plan) for plan in _fit(sessions, explained, plans)]
    rows = row_counts(sessions)
    _print(found, rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"== {name}, {plan.ms:.2f} ms\n{plan.sql}\n{outline(plan.tree)}\n" for name, plan in found]
    out.write_text("\n".join(parts), encoding="utf-8")
    whole = [(name, table) for name, plan in found for table in plan.whole(rows, SMALL)]
    report.add("hot statements explained", len(found))
    report.add("  that read a large table whole", len(whole), "", "0")
    for name, table in whole:
        report.add(f"    {table}, {name}", 1)
    for name in _ONE_BY_ONE:
        most = max(plan.hit + plan.read for use, plan in found if use == name)
        report.add(f"  most buffers of a statement: {name}", most, "", "≤ 100")
    report.add("  longest of one", max(plan.ms for _, plan in found), "ms")


#: Uses that concern one request or job: what they read must not grow with what there is, nor with what waits.
_ONE_BY_ONE = (
    "caller of a key",
    "list of profiles",
    "one profile",
    "one version",
    "version of a name",
    "version of an end user",
    "a version's edits",
    "nearest fit queries",
    "nearest groups",
    "an evaluation",
    "a profile asked for",
    "claim of a job, heartbeat",
    "usage of a tenant",
)


def _uses(secrets: dict[Any, str]) -> dict[str, Use]:
    embedding = np.random.default_rng(0).standard_normal(HIDDEN_SIZE).astype(np.float32)
    embedding /= np.linalg.norm(embedding)
    today = datetime.now(UTC).date()

    def version(uow: UnitOfWork, caller: service.Caller, name: str) -> service.ResolvedVersion:
        return service.pick_version(uow, caller, name)

    def resolved(then: Callable[[UnitOfWork, service.ResolvedVersion], object]) -> Use:
        return lambda uow, caller, name: then(uow, version(uow, caller, name))

    def claimed(uow: UnitOfWork, caller: service.Caller, _: str) -> object:
        job = service.list_jobs(uow, caller, limit=1).rows[0]
        claim = jobs.claim(uow, job.id, "bench", 60.0)
        return claim and jobs.heartbeat(uow, claim, 60.0)

    def sent(uow: UnitOfWork, _: service.Caller, __: str) -> None:
        messages = uow.repository.jobs.take_messages(100)
        uow.repository.jobs.sent({message.id: message.job_id for message in messages})

    def used(uow: UnitOfWork, _: service.Caller, __: str) -> None:
        statement = text("SELECT tenant_id, id FROM profiles ORDER BY id LIMIT 50")
        rows = uow.session.execute(statement).all()
        service.record_usage(uow, [service.UsageCount(row[0], today, row[1], 1, 10, 10) for row in rows])

    def events(uow: UnitOfWork, caller: service.Caller, _: str) -> object:
        job = service.list_jobs(uow, caller, limit=1).rows[0]
        return service.job_events(uow, caller, job.id)

    def swept(uow: UnitOfWork, _: service.Caller, __: str) -> object:
        return jobs.sweep(uow, 0.0), uow.repository.jobs.backlog()

    return {
        "caller of a key": lambda uow, caller, _: service.authenticate(uow, secrets[caller.key_id]),
        "list of profiles": lambda uow, caller, _: read_profiles(uow, service.list_profiles(uow, caller).rows),
        "one profile": lambda uow, caller, name: read_profiles(uow, [service.get_profile(uow, caller, name)]),
        "versions of a profile": lambda uow, caller, name: service.list_versions(uow, caller, name),
        "one version": lambda uow, caller, name: service.get_version(uow, caller, name, 1),
        "version of a name": version,
        "version of a number": lambda uow, caller, name: service.pick_version(uow, caller, name, version=1),
        "version of an end user": lambda uow, caller, name: service.resolve_for_user(
            uow, caller, name.replace("p", "user-")
        ),
        "a version's edits": resolved(lambda uow, found: service.load_active(uow, found.version_id)),
        "nearest fit queries": resolved(
            lambda uow, found: service.nearest_representations(uow, found.version_id, embedding, 5)
        ),
        "nearest groups": resolved(lambda uow, found: service.nearest_groups(uow, found.version_id, embedding, 5)),
        "an evaluation": lambda uow, caller, name: latest_evaluation(uow, caller, name, 1),
        "a profile asked for": lambda uow, caller, name: request_fit(uow, caller, SPEC, name=f"new-{name}"),
        "events of a job": events,
        "claim of a job, heartbeat": claimed,
        "outbox taken and sent": sent,
        "sweep, backlog": swept,
        "usage of 50 profiles added": used,
        "usage of a tenant": lambda uow, caller, _: service.usage_since(uow, caller.tenant_id),
    }


def _callers(sessions: SessionFactory, count: int) -> tuple[list[service.Caller], dict[Any, str]]:
    with UnitOfWork.open(sessions) as uow:
        statement = text("SELECT id FROM tenants WHERE name <> 'template' ORDER BY id LIMIT :count")
        made = [service.create_key(uow, t, "member", "plans") for t in uow.session.scalars(statement, {"count": count})]
        callers = [service.Caller(row.id, row.tenant_id, row.role) for row, _ in made]
        return callers, {row.id: secret for row, secret in made}


def _fit(sessions: SessionFactory, explained: SessionFactory, plans: list[Plan]) -> list[Plan]:
    """One of each statement of a fit from claim to publication, of a job that `sessions` finds waiting."""
    with sessions() as session:
        statement = text("SELECT id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT 1")
        job = session.scalars(statement).one()
    engine = FakeEngine(n_layers=LAYERS, hidden_size=HIDDEN_SIZE)
    outcome = runner(explained, engine).run(job)
    engine.close()
    if outcome != "succeeded":
        raise RuntimeError(f"the explained fit ended as {outcome!r}")
    return list({plan.sql: plan for plan in plans}.values())


def _print(found: list[tuple[str, Plan]], rows: dict[str, float]) -> None:
    table = Table(title="plans: every hot statement, explained at this size", title_justify="left")
    for column in ("use", "reads by", "buffers", "of them not in memory", "ms"):
        table.add_column(column, justify="left" if column in ("use", "reads by") else "right")
    before = ""
    for name, plan in found:
        scans = ", ".join(dict.fromkeys(str(scan) for scan in plan.scans if scan.rows or scan.index)) or "no table"
        if plan.whole(rows, SMALL):
            scans = f"WHOLE TABLE: {scans}"
        table.add_row(
            "" if name == before else name, scans, f"{plan.hit + plan.read}", f"{plan.read}", f"{plan.ms:.2f}"
        )
        before = name
    Console(width=max(150, Console().width)).print(table)
