"""What the soak asks of the stack beside HTTP: its tenants, its gauges, and the truth in its database."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg

from cli.config import RunInfo

_GAUGE = re.compile(r"^(alignez:\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_VERSIONS = """
    SELECT p.tenant_id::text, p.id::text, p.name, v.number, v.sha256
    FROM profile_versions v JOIN profiles p ON p.id = v.profile_id WHERE v.sha256 IS NOT NULL
"""
#: Deleted profiles and archived versions as they were, under names that nobody has, past the triggers that forbid it.
_RESTORE = """
    SET LOCAL session_replication_role = replica;
    UPDATE profiles SET archived_at = NULL, name = 'was-' || id WHERE archived_at IS NOT NULL;
    UPDATE profile_versions SET state = 'ready', archived_at = NULL WHERE state = 'archived' AND sha256 IS NOT NULL;
"""


@dataclass(frozen=True)
class StoredVersion:
    """One fitted version as the database has it, whatever became of it."""

    tenant_id: str
    profile_id: str
    profile: str
    number: int
    sha256: str


class StackDatabase:
    """The embedded database of a stack's data directory."""

    def __init__(self, data_dir: Path) -> None:
        folder = data_dir / "postgres"
        port, password = ((folder / name).read_text().strip() for name in ("port", "password"))
        self._conninfo = f"host=127.0.0.1 port={port} user=alignez dbname=alignez password={password}"

    def versions(self) -> list[StoredVersion]:
        """Every version that was ever ready."""
        with psycopg.connect(self._conninfo) as connection:
            return [StoredVersion(*row) for row in connection.execute(_VERSIONS)]

    def restore(self) -> None:
        """Brings back what was deleted or archived, so that it can be asked alone."""
        with psycopg.connect(self._conninfo) as connection:
            connection.execute(_RESTORE)

    def unfinished(self) -> tuple[int, int]:
        """Jobs in no final state, and messages that were not sent."""
        with psycopg.connect(self._conninfo) as connection:
            jobs = connection.execute("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')").fetchone()
            messages = connection.execute("SELECT count(*) FROM outbox").fetchone()
        return (jobs or (0,))[0], (messages or (0,))[0]


async def make_tenants(client: httpx.AsyncClient, run: RunInfo, count: int) -> tuple[list[str], list[str]]:
    """Ids of new tenants, and a member's key of each."""
    admin = {"Authorization": f"Bearer {Path(run.admin_key_file).read_text().strip()}"}
    ids, keys = [], []
    for i in range(count):
        made = await client.post("/admin/tenants", json={"name": f"soak-{i}"}, headers=admin)
        body = {"name": "soak", "tenant_id": made.raise_for_status().json()["id"]}
        key = await client.post("/admin/keys", json=body, headers=admin)
        ids.append(str(body["tenant_id"]))
        keys.append(str(key.raise_for_status().json()["secret"]))
    return ids, keys


async def gauges(client: httpx.AsyncClient, run: RunInfo) -> dict[str, float]:
    """The API's generation metrics by name, without their prefix; 0 for what is not there."""
    text = (await client.get(run.metrics_url)).raise_for_status().text
    return {name.removeprefix("alignez:"): float(value) for name, value in _GAUGE.findall(text)}


async def until_idle(client: httpx.AsyncClient, run: RunInfo, patience_s: float) -> float:
    """Waits until no request runs or waits by the API's own count; returns how many still did."""
    until = time.monotonic() + patience_s
    while True:
        found = await gauges(client, run)
        busy = found.get("num_requests_running", 0) + found.get("num_requests_waiting", 0)
        if busy == 0 or time.monotonic() > until:
            return busy
        await asyncio.sleep(0.2)
