"""Many requests at once: more than the pool has connections, and more than the process has threads."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx

from profiles.settings import DatabaseSettings
from profiles.uow import make_session_factory
from tests.api.conftest import Tenant, serving

#: More than the 40 threads that FastAPI has for plain functions.
PARALLEL = 80


def test_a_burst_beyond_connections_and_threads_is_answered(make_app: Any, tenant: Tenant, postgres_url: str) -> None:
    database = DatabaseSettings(database_url=postgres_url, pool_size=2, pool_overflow=0, pool_timeout_s=20)
    sessions = make_session_factory(database)

    async def burst(url: str) -> list[int]:
        limits = httpx.Limits(max_connections=PARALLEL)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60, headers=tenant.headers) as client:
            replies = await asyncio.gather(*(client.get("/v1/profiles") for _ in range(2 * PARALLEL)))
        return [reply.status_code for reply in replies]

    try:
        with serving(make_app(role="control", sessions=sessions, database=database)) as (url, _):
            assert Counter(asyncio.run(burst(url))) == {200: 2 * PARALLEL}
    finally:
        sessions.kw["bind"].dispose()
