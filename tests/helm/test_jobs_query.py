"""KEDA's query counts the jobs of all tenants, under row-level security and as the role of the processes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import make_url

from cli.local_stack.postgres import PostgresServer
from tests.helm.charts import KEDA, find, nested, render

pytestmark = pytest.mark.helm

# The policy of the migrations, on a table of the columns that the query reads.
_SCHEMA = """
CREATE ROLE keda LOGIN PASSWORD 'keda';
CREATE TABLE jobs (id int PRIMARY KEY, tenant_id uuid NOT NULL, status text NOT NULL);
GRANT SELECT ON jobs TO keda;
ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON jobs USING (
    (SELECT current_setting('alignez.tenant', true)) = 'platform'
    OR tenant_id = (SELECT nullif(nullif(current_setting('alignez.tenant', true), ''), 'platform')::uuid)
);
"""


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """A connection as KEDA makes it: of a role that owns nothing, each statement a transaction of its own."""
    with PostgresServer(tmp_path_factory.mktemp("jobs"), durable=False) as server:
        url = make_url(getattr(server, "owner_url", server.url)).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False)) as owner:
            owner.execute(_SCHEMA.encode())
            for number in range(60):
                status = ("queued", "running", "succeeded")[number % 3]
                owner.execute("INSERT INTO jobs VALUES (%s, %s, %s)", [number, uuid.uuid4(), status])
            owner.execute("ANALYZE jobs")
        keda = url.set(username="keda", password="keda").render_as_string(hide_password=False)
        with psycopg.connect(keda, autocommit=True) as connected:
            yield connected


def _count(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("mode", ["external", "embedded"])
def test_the_query_counts_jobs_of_all_tenants(connection: psycopg.Connection, mode: str) -> None:
    trigger = find(render(nested({**KEDA, "database.mode": mode})), "ScaledObject", "-worker")["spec"]["triggers"][0]
    query = trigger["metadata"]["query"]
    assert _count(connection, "SELECT count(*) FROM jobs") == 0, "the policy does not hold"
    for plan in ("on", "off"):
        connection.execute(f"SET enable_seqscan = {plan}".encode())
        assert _count(connection, query) == 40
    # It leaves nothing behind: a pooled connection is no wider for the next statement.
    assert _count(connection, "SELECT count(*) FROM jobs") == 0
