"""Postgres's own account of the statements that our code sends: plans with their buffers and times.

The statements are not copied from the code, they are caught on their way: a cursor that lets Postgres explain each one,
with its parameters, in the transaction and at the moment in which it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import event, text

from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, make_session_factory

_EXPLAINABLE = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


@dataclass(frozen=True)
class Scan:
    """How one table was read.

    Args:
        node: as Postgres calls it. index: None without one. rows: that it looked at, those it dropped too.
    """

    node: str
    table: str
    index: str | None
    rows: int

    def __str__(self) -> str:
        return f"{self.node} {self.index or self.table}"


@dataclass(frozen=True)
class Plan:
    """One statement, explained while it ran.

    Args:
        hit, read: buffers of 8 KiB from shared memory, and from outside of it. ms: planned and executed.
    """

    sql: str
    scans: tuple[Scan, ...]
    hit: int
    read: int
    ms: float
    tree: Mapping[str, Any]

    def whole(self, rows: Mapping[str, float], small: int) -> list[str]:
        """Tables over `small` rows that were read from their beginning to their end."""
        return [s.table for s in self.scans if s.node == "Seq Scan" and rows.get(s.table, 0) > small]


def read_plan(sql: str, explained: Mapping[str, Any]) -> Plan:
    """A plan from what EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) says of one statement."""
    tree = explained["Plan"]
    scans = tuple(_scan(node) for node in _nodes(tree) if "Index Name" in node or "Relation Name" in node)
    return Plan(
        " ".join(sql.split()),
        scans,
        tree.get("Shared Hit Blocks", 0),
        tree.get("Shared Read Blocks", 0),
        explained.get("Planning Time", 0.0) + explained.get("Execution Time", 0.0),
        tree,
    )


def outline(tree: Mapping[str, Any], depth: int = 0) -> str:
    """A plan's nodes, one a line, children further in."""
    index, table = tree.get("Index Name"), tree.get("Relation Name")
    name = " ".join(
        str(part) for part in (tree["Node Type"], index and f"using {index}", table and f"on {table}") if part
    )
    condition = tree.get("Index Cond") or tree.get("Hash Cond") or tree.get("Filter")
    line = (
        f"{'  ' * depth}{name}  rows={tree.get('Actual Rows', 0)} loops={tree.get('Actual Loops', 0)}"
        f" ms={tree.get('Actual Total Time', 0.0):.3f}"
        f" buffers={tree.get('Shared Hit Blocks', 0)}+{tree.get('Shared Read Blocks', 0)}"
    )
    lines = [line if condition is None else f"{line}  {condition}"]
    return "\n".join([*lines, *(outline(child, depth + 1) for child in tree.get("Plans", ()))])


@contextmanager
def explaining(database: DatabaseSettings) -> Iterator[tuple[SessionFactory, list[Plan]]]:
    """Sessions whose statements are explained before they are run, and the plans so far, in order."""
    plans: list[Plan] = []
    sessions = make_session_factory(database)
    factory = _cursor(plans)

    def connect(connection: Any, _: object) -> None:
        connection.cursor_factory = factory

    event.listen(sessions.kw["bind"], "connect", connect)
    try:
        yield sessions, plans
    finally:
        sessions.kw["bind"].dispose()


def row_counts(sessions: SessionFactory) -> dict[str, float]:
    """Rows of each table, as Postgres's planner knows them."""
    statement = "SELECT relname, reltuples FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    with sessions() as session:
        return {row.relname: float(row.reltuples) for row in session.execute(text(statement))}


def _cursor(plans: list[Plan]) -> Callable[..., psycopg.Cursor[TupleRow]]:
    class Explaining(psycopg.Cursor[TupleRow]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            if isinstance(query, str) and query.lstrip().upper().startswith(_EXPLAINABLE):
                self._explain(query, params)
            return super().execute(query, params, **options)

        def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
            rows: Sequence[Any] = list(params_seq)
            if rows and isinstance(query, str):
                self._explain(query, rows[0])  # they differ in their values only
            super().executemany(query, rows, **options)

        def _explain(self, query: str, params: Any) -> None:
            inside = not self.connection.autocommit
            if inside:  # ANALYZE runs the statement: what it wrote goes away again
                super().execute("SAVEPOINT explained")
            super().execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", params, prepare=False, binary=False)
            (found,) = self.fetchone() or ([],)
            if inside:
                super().execute("ROLLBACK TO SAVEPOINT explained")
            plans.append(read_plan(query, found[0]))

    return Explaining


def _nodes(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield tree
    for child in tree.get("Plans", ()):
        yield from _nodes(child)


def _scan(node: Mapping[str, Any]) -> Scan:
    index = node.get("Index Name")
    dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    looked_at = (node.get("Actual Rows", 0) + dropped) * node.get("Actual Loops", 1)
    return Scan(node["Node Type"], node.get("Relation Name") or index or "", index, int(looked_at))
