"""Plans of all statements of hot requests, a fit and the relay, among many profiles and waiting jobs.

The statements are not copied from the code but intercepted: a cursor has Postgres explain each one, with its parameters
and in its transaction, just before it runs. The cost of a request must not grow with the number of profiles, nor with
1,000 waiting jobs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from fastapi.testclient import TestClient
from psycopg.rows import TupleRow
from sqlalchemy import event, text

from alignez_core.engines.fake.engine import FakeEngine
from api.app import create_app
from api.settings import ApiSettings
from bench.processes import Database
from bench.report import Report
from bench.scale.fill import HIDDEN_SIZE, LAYERS, PER_TENANT, SPEC, callers, template_runner
from profiles.fitting import claims
from profiles.fitting.request import request_fit
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory

_EXPLAINABLE = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
#: Tables with fewer rows may be scanned.
SMALL = 20_000
_CHAT = {"messages": [{"role": "user", "content": "How do I start hiking?"}], "max_tokens": 1}
#: Method, path and body; `{}` is a profile's name. Each is sent three times; the last plan counts.
HOT: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("GET", "/v1/profiles", {}),
    ("GET", "/v1/profiles/{}", {}),
    ("GET", "/v1/profiles/{}/versions", {}),
    ("GET", "/v1/profiles/{}/versions/1", {}),
    ("GET", "/v1/profiles/{}/versions/1/report", {}),
    ("GET", "/v1/users/user-1/profile", {}),
    ("GET", "/v1/jobs", {}),
    ("POST", "/v1/chat/completions", {**_CHAT, "model": "fake@{}"}),
    ("POST", "/v1/chat/completions", {**_CHAT, "model": "fake", "user": "user-1"}),
    ("POST", "/v1/profiles", {**SPEC, "name": "new-{}"}),
)


@dataclass(frozen=True)
class Plan:
    """An explained statement."""

    use: str
    sql: str
    tree: Mapping[str, Any]
    ms: float

    @property
    def scans(self) -> list[str]:
        """Access to each table or index, for example "Index Scan pk_profiles"."""
        found = [(node["Node Type"], node.get("Index Name") or node.get("Relation Name")) for node in _nodes(self.tree)]
        return list(dict.fromkeys(f"{kind} {name}" for kind, name in found if name))

    def whole(self, rows: Mapping[str, float], small: int) -> list[str]:
        """Tables of more than `small` rows that were scanned sequentially."""
        tables = (n.get("Relation Name", "") for n in _nodes(self.tree) if n["Node Type"] == "Seq Scan")
        return [table for table in tables if rows.get(table, 0) > small]


class Plans(list[Plan]):
    """The plans so far; `use` names the purpose of the next statements."""

    use = ""


def run(data: Database, title: str) -> Report:
    """Explains the statements with their own parameters."""
    asking = callers(data.sessions, 200)
    for caller in asking.values():
        with UnitOfWork.open(data.sessions, PLATFORM) as uow:
            for i in range(5):
                request_fit(uow, caller, SPEC, name=f"waiting-{i}")
    with data.owner() as session:
        job = session.scalars(text("SELECT id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT 1")).one()
    engine = FakeEngine(n_layers=LAYERS, hidden_size=HIDDEN_SIZE)
    with explaining(data.url) as (explained, plans):
        app = create_app(ApiSettings(port=0), engine=engine, session_factory=explained)
        _ask(app, list(asking), plans)
        plans.use = "a fit"
        if (outcome := template_runner(explained, engine).run(job)) != "succeeded":
            raise RuntimeError(f"the explained fit ended as {outcome!r}")
        plans.use = "the relay"
        with UnitOfWork.open(explained, PLATFORM) as uow:
            messages = uow.repository.jobs.take_messages(100)
            uow.repository.jobs.sent({message.id: message.job_id for message in messages})
            claims.sweep(uow, 0.0)
            uow.repository.jobs.backlog()
    statement = "SELECT relname, reltuples FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    with data.owner() as session:
        rows = {row.relname: float(row.reltuples) for row in session.execute(text(statement))}
    return _report(list({(plan.use, plan.sql): plan for plan in plans}.values()), rows, title)


def _report(plans: Sequence[Plan], rows: Mapping[str, float], title: str) -> Report:
    report = Report("plans", title, ("buffers", "not in memory", "ms"))
    most: dict[str, float] = {}
    for plan in plans:
        read = plan.tree.get("Shared Read Blocks", 0)
        buffers = read + plan.tree.get("Shared Hit Blocks", 0)
        most[plan.use] = max(buffers, most.get(plan.use, 0))
        report.add(f"{plan.use}: {', '.join(plan.scans)[:80] or 'no table'}", buffers, read, plan.ms)
        whole = [f"reads {table} whole: {plan.use}: {plan.sql}" for table in plan.whole(rows, SMALL)]
        report.details += whole
        report.more.setdefault("plans", []).append({"use": plan.use, "sql": plan.sql, "plan": plan.tree})
    for use, buffers in most.items():
        report.add(f"most buffers, {use}", buffers, most=None if use in ("a fit", "the relay") else 100)
    report.add("statements explained", len(plans))
    report.add("  that read a large table whole", len(report.details), most=0)
    return report


def _ask(app: Any, keys: list[str], plans: Plans) -> None:
    """Sends the hot requests, each with a different key and profile."""
    draw = random.Random(1)
    with TestClient(app) as client:
        for method, path, body in HOT:
            for _ in range(3):
                plans.use = f"{method} {path} {body.get('model', '')}".strip()
                name, headers = f"p{draw.randrange(PER_TENANT)}", {"Authorization": f"Bearer {draw.choice(keys)}"}
                filled = {k: v.format(name) if k in ("model", "name") else v for k, v in body.items()}
                client.request(method, path.format(name), json=filled or None, headers=headers).raise_for_status()


@contextmanager
def explaining(url: str) -> Iterator[tuple[SessionFactory, Plans]]:
    """Sessions whose statements are explained before they run, and the list that receives the plans."""
    plans = Plans()
    sessions = make_session_factory(url)
    factory = _cursor(plans)

    def connect(connection: Any, _: object) -> None:
        connection.cursor_factory = factory

    event.listen(sessions.kw["bind"], "connect", connect)
    try:
        yield sessions, plans
    finally:
        sessions.kw["bind"].dispose()


def _cursor(plans: Plans) -> Callable[..., psycopg.Cursor[TupleRow]]:
    class Explaining(psycopg.Cursor[TupleRow]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            if isinstance(query, str) and query.lstrip().upper().startswith(_EXPLAINABLE):
                self._explain(query, params)
            return super().execute(query, params, **options)

        def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
            rows: Sequence[Any] = list(params_seq)
            if rows and isinstance(query, str):
                self._explain(query, rows[0])  # the others differ in their values only
            super().executemany(query, rows, **options)

        def _explain(self, query: str, params: Any) -> None:
            inside = not self.connection.autocommit
            if inside:  # ANALYZE runs the statement; this undoes its writes
                super().execute("SAVEPOINT explained")
            super().execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", params, prepare=False, binary=False)
            ((found,),) = self.fetchone() or ([{"Plan": {}}],)
            if inside:
                super().execute("ROLLBACK TO SAVEPOINT explained")
            ms = found.get("Planning Time", 0.0) + found.get("Execution Time", 0.0)
            plans.append(Plan(plans.use, " ".join(query.split()), found["Plan"], ms))

    return Explaining


def _nodes(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield tree
    for child in tree.get("Plans", ()):
        yield from _nodes(child)
