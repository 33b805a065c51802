"""A statement that reads a large table from its beginning to its end is noticed."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from bench.scale.plans import explaining


@pytest.mark.parametrize(("condition", "whole"), [("other = 5", ["seen"]), ("n = 5", [])])
def test_a_large_table_read_whole_is_noticed(postgres_url: str, condition: str, whole: list[str]) -> None:
    with explaining(postgres_url) as (sessions, plans), sessions() as session:
        session.execute(text("CREATE TEMPORARY TABLE seen (n int PRIMARY KEY, other int)"))
        session.execute(text("INSERT INTO seen SELECT n, n FROM generate_series(1, 5000) AS n"))
        session.execute(text("ANALYZE seen"))
        assert len(session.execute(text(f"SELECT * FROM seen WHERE {condition}")).all()) == 1
        session.rollback()
    assert plans[-1].whole({"seen": 5000}, small=1000) == whole
