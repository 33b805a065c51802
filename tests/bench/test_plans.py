"""Reading of Postgres's plans, on a plan as Postgres 16 prints it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from bench.plans import explaining, outline, read_plan
from profiles.settings import DatabaseSettings

JOIN: dict[str, Any] = {
    "Plan": {
        "Node Type": "Nested Loop",
        "Actual Rows": 3,
        "Actual Loops": 1,
        "Actual Total Time": 0.2,
        "Shared Hit Blocks": 7,
        "Shared Read Blocks": 2,
        "Plans": [
            {
                "Node Type": "Index Scan",
                "Relation Name": "profiles",
                "Index Name": "pk_profiles",
                "Index Cond": "(id = $1)",
                "Actual Rows": 1,
                "Actual Loops": 1,
            },
            {
                "Node Type": "Seq Scan",
                "Relation Name": "fit_queries",
                "Filter": "(version_id = $2)",
                "Rows Removed by Filter": 40,
                "Actual Rows": 10,
                "Actual Loops": 2,
            },
        ],
    },
    "Planning Time": 0.5,
    "Execution Time": 1.0,
}


def test_a_plan_says_what_was_read_and_how() -> None:
    plan = read_plan("SELECT 1\n   FROM profiles", JOIN)
    assert plan.sql == "SELECT 1 FROM profiles"
    assert (plan.hit, plan.read, plan.ms) == (7, 2, 1.5)
    assert [str(scan) for scan in plan.scans] == ["Index Scan pk_profiles", "Seq Scan fit_queries"]
    assert [scan.rows for scan in plan.scans] == [1, 100]


@pytest.mark.parametrize(("rows", "found"), [(21_000, ["fit_queries"]), (20_000, [])])
def test_only_a_large_table_read_whole_is_a_finding(rows: float, found: list[str]) -> None:
    assert read_plan("SELECT 1", JOIN).whole({"fit_queries": rows, "profiles": 1e6}, 20_000) == found


def test_an_outline_has_a_line_for_each_node() -> None:
    lines = outline(JOIN["Plan"]).split("\n")
    assert [line.split("  rows")[0] for line in lines] == [
        "Nested Loop",
        "  Index Scan using pk_profiles on profiles",
        "  Seq Scan on fit_queries",
    ]
    assert lines[1].endswith("(id = $1)")


def test_statements_are_explained_as_they_are_sent_and_write_once(postgres_url: str) -> None:
    with explaining(DatabaseSettings(database_url=postgres_url)) as (sessions, plans), sessions() as session:
        session.execute(text("CREATE TEMPORARY TABLE seen (n int)"))
        session.execute(text("INSERT INTO seen VALUES (:n)"), {"n": 5})
        assert session.scalars(text("SELECT n FROM seen")).all() == [5]
        session.rollback()
    assert [plan.sql.split()[0] for plan in plans[-2:]] == ["INSERT", "SELECT"]
    assert [str(scan) for scan in plans[-1].scans] == ["Seq Scan seen"]
