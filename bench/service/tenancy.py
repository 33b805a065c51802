"""What row-level security costs a request: `python -m bench tenancy [--quick]`.

The statements of a chat request's choice of a profile, with the scope and the policies (as the processes' role) and
without (as the tables' owner), in turns on one server, among the profiles of several tenants. A transaction that writes
an audit entry is measured alike, with and without the chain's trigger.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing

from sqlalchemy import text

from alignez_core.engines.fake.engine import FakeEngine
from bench.fits import fit, new_tenant, runner
from bench.processes import Database, database
from bench.report import Report
from profiles.repository import Repository
from profiles.service import Caller, pick_version
from profiles.uow import UnitOfWork

SPEC = {
    "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
    "fit": {"method": "alignez", "tune_queries": 0, "held_out_queries": 4, "answer_tokens": 16},
}


def run(quick: bool = False) -> Report:
    """The added time of a request at its median."""
    tenants, turns = (3, 200) if quick else (20, 3000)
    report = Report("tenancy", f"{tenants} tenants with a profile each, {turns} requests in turns", ("p50", "p95"))
    with database() as data, closing(FakeEngine()) as engine:
        callers = [new_tenant(data.sessions, f"tenant-{i}")[0] for i in range(tenants)]
        runs = runner(data.sessions, engine, "fake:", tuple(f"question {i}" for i in range(8)))
        for caller in callers:
            fit(data.sessions, runs, caller, "p", SPEC)
        _compare(
            report, "a profile's choice", callers, turns, lambda c: _pick(data, c), lambda c: _pick_bare(data, c), 2
        )
        _chain(report, data, callers, turns // 4)
    return report


def _compare(
    report: Report, what: str, callers: list[Caller], turns: int, new: Callable[[Caller], None],
    old: Callable[[Caller], None], most_ms: float | None = None,
) -> None:  # fmt: skip
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for i in range(turns + 50):
        for name, act in (("with", new), ("without", old)) if i % 2 else (("without", old), ("with", new)):
            began = time.perf_counter()
            act(callers[i % len(callers)])
            if i >= 50:
                seconds[name].append(time.perf_counter() - began)
    for name, values in seconds.items():
        cuts = statistics.quantiles(values, n=20)
        report.add(f"{what}, {name}", cuts[9] * 1e3, cuts[18] * 1e3, unit="ms")
    added = statistics.median(a - b for a, b in zip(seconds["with"], seconds["without"], strict=True))
    report.add("  added, median of pairs", added * 1e3, unit="ms", most=most_ms)


def _pick(data: Database, caller: Caller) -> None:
    with UnitOfWork.reading(data.sessions, caller.tenant_id) as uow:
        pick_version(uow, caller, "p", version=1)


def _pick_bare(data: Database, caller: Caller) -> None:
    with data.owner() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        pick_version(UnitOfWork(session, Repository(session)), caller, "p", version=1)


def _chain(report: Report, data: Database, callers: list[Caller], turns: int) -> None:
    def write(caller: Caller) -> None:
        with data.owner() as session, session.begin():
            Repository(session).accounts.audit(caller.tenant_id, caller.key_id, "bench", "x", 1)

    def write_bare(caller: Caller) -> None:
        with data.owner() as session, session.begin():
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(
                text(
                    "INSERT INTO audit_log (tenant_id, key_id, action, subject, subject_id, details, number, sha256)"
                    " SELECT :tenant, :key, 'bench', 'x', '1', '{}', -1 - count(*), '' FROM audit_log WHERE number < 0"
                ),
                {"tenant": caller.tenant_id, "key": caller.key_id},
            )

    _compare(report, "an audited change", callers, turns, write, write_bare)
