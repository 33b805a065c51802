"""The edit of one sample-conditional request, from the database to the edit plan: `python -m bench.lookup`.

The embedded Postgres as `alignez up` runs it holds 1000 versions. The measured one has N fit queries of D numbers with
L layers of representations; each other one has `FILL` queries of full width, which share its tables and indexes, and
representations of 8 numbers, because a thousand full ones are 240 GB. Embeddings have a power-law spectrum, as those of
language models do; for points without any structure, where a projection does worst, recall is computed beside.

Timed is what a request does after its query embedding is there: a connection of the pool, the statement that reads the
K nearest and their representations, then the plan (`alignez`); or the statement that reads their groups, then the vote
(`distill`, where queries have phrases of their own). Every request has another embedding.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID

import numpy as np
import torch
from sqlalchemy import text
from sqlalchemy.orm import Session

from alignez_core.methods.alignez import neighbor_plan
from alignez_core.methods.base import vote
from alignez_core.spec.config import FitConfig
from bench.report import Report
from cli.local_stack.postgres import PostgresServer
from profiles import migrate, vectors
from profiles.ids import new_id
from profiles.models import Profile, ProfileVersion, VersionState
from profiles.repository.fits import CANDIDATES
from profiles.service import create_tenant, nearest_groups, nearest_representations
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, UnitOfWork, make_session_factory
from profiles.vectors import Vector

D, L, K, N = 4096, 5, 10, 1000
VERSIONS = 1000
FILL = 20
WARM_UP, REQUESTS = 50, 500
LAYERS = tuple(range(10, 10 + L))
GROUPS = 4


def run() -> Report:
    """Measures both kinds of lookup, and the recall of the search by sketch."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    bank = _structured(random, N + WARM_UP + REQUESTS)
    stored, queries = bank[:N], bank[N:]
    report = Report(
        "lookup",
        f"D={D}, L={L}, K={K}, N={N}, among {VERSIONS} versions ({FILL} queries in each other one), "
        f"{REQUESTS} requests one after another",
    )
    with tempfile.TemporaryDirectory() as folder, PostgresServer(Path(folder)) as postgres:
        migrate.upgrade(postgres.url)
        sessions = make_session_factory(DatabaseSettings(database_url=postgres.url))
        version_id, ids = _fill(sessions, stored, random)
        _measure_neighbors(report, sessions, version_id, queries)
        _measure_groups(report, sessions, version_id, queries)
        found = [_nearest_ids(sessions, version_id, query) for query in queries[:200]]
        sessions.kw["bind"].dispose()
    exact = [[ids[i] for i in np.argsort(-(stored @ query), kind="stable")[:K]] for query in queries[:200]]
    report.add(f"recall, {CANDIDATES} candidates by sketch, then exact", _recall(found, exact))
    report.add("recall, points without structure (worst case)", _isotropic_recall(random))
    return report


def _measure_neighbors(report: Report, sessions: SessionFactory, version_id: UUID, queries: Vector) -> None:
    config = FitConfig(method="alignez")
    seconds = []
    for query in queries:
        started = time.perf_counter()
        with UnitOfWork.reading(sessions) as uow:
            near = nearest_representations(uow, version_id, query, K)
        read = time.perf_counter()
        if near.help is None or near.harm is None:
            raise RuntimeError("the measured version has no representations")
        neighbor_plan(config, near.layers, torch.from_numpy(near.help), torch.from_numpy(near.harm), 1.0)
        seconds.append((read - started, time.perf_counter() - read))
    _add(report, "alignez: request's edit", seconds, ("nearest and their representations", "SVD and plan"))


def _measure_groups(report: Report, sessions: SessionFactory, version_id: UUID, queries: Vector) -> None:
    seconds = []
    for query in queries:
        started = time.perf_counter()
        with UnitOfWork.reading(sessions) as uow:
            near = nearest_groups(uow, version_id, query, K)
        read = time.perf_counter()
        vote(near.groups, near.similarities.tolist())
        seconds.append((read - started, time.perf_counter() - read))
    _add(report, f"{GROUPS} groups: request's edit", seconds, ("nearest and their groups", "vote"))


def _add(report: Report, what: str, seconds: Sequence[tuple[float, float]], parts: tuple[str, str]) -> None:
    timed = np.array(seconds[WARM_UP:]) * 1e3
    whole = timed.sum(1)
    report.add(f"{what}, p50", float(np.percentile(whole, 50)), "ms", "≤ 5")
    report.add("  p95", float(np.percentile(whole, 95)), "ms")
    for i, name in enumerate(parts):
        report.add(f"  {name}, p50", float(np.percentile(timed[:, i], 50)), "ms")
        report.add(f"  {name}, p95", float(np.percentile(timed[:, i], 95)), "ms")


def _nearest_ids(sessions: SessionFactory, version_id: UUID, query: Vector) -> list[UUID]:
    with UnitOfWork.reading(sessions) as uow:
        return list(nearest_representations(uow, version_id, query, K, ("help",)).query_ids)


def _fill(sessions: SessionFactory, stored: Vector, random: np.random.Generator) -> tuple[UUID, list[UUID]]:
    """Writes all versions; returns the measured one, from their middle, and its query ids by position."""
    with UnitOfWork.open(sessions) as uow:
        session = uow.session
        tenant = create_tenant(uow, "bench").id
        profile = Profile(tenant_id=tenant, name="bench")
        session.add(profile)
        session.flush()
        versions = [new_id() for _ in range(VERSIONS)]
        session.add_all(
            ProfileVersion(
                id=version, tenant_id=tenant, profile_id=profile.id, number=i + 1, state=VersionState.PENDING, spec={}
            )
            for i, version in enumerate(versions)
        )
        session.flush()
        measured, ids = versions[VERSIONS // 2], [new_id() for _ in range(N)]
        filler = _structured(random, FILL)
        for version in versions:
            if version == measured:
                _copy(session, tenant, version, ids, stored, random.standard_normal((64, D), dtype=np.float32))
            else:
                _copy(session, tenant, version, [new_id() for _ in range(FILL)], filler, filler[:, :8])
    with UnitOfWork.open(sessions) as uow:
        uow.session.execute(text("ANALYZE"))  # as autovacuum has done by the time a version is used
    return measured, ids


def _copy(session: Session, tenant: UUID, version: UUID, ids: Sequence[UUID], embeddings: Vector, rows: Vector) -> None:
    """One version's queries and representations; the latter are made of `rows`, plus a share of the query's own."""
    short = vectors.sketch(embeddings)
    vectors.copy_rows(
        session,
        "fit_queries",
        [("id", "uuid"), ("tenant_id", "uuid"), ("version_id", "uuid"), ("position", "int4"), ("text", "text"),
         ("source", "text"), ("persona_group", "int4"), ("embedding", "bytea"), ("embedding_sketch", "bytea")],
        (
            (ids[i], tenant, version, i, f"query {i}", "given", i % GROUPS, vectors.encode(wide),
             vectors.encode(short[i]))
            for i, wide in enumerate(embeddings)
        ),
    )  # fmt: skip

    def representations() -> Iterable[tuple[object, ...]]:
        width = rows.shape[1]
        for i, own in enumerate(embeddings[:, :width]):
            chosen = 7 * i + 3 * np.arange(L)
            sides = (vectors.pack(rows[(chosen + s) % len(rows)] + own) for s in range(2))
            yield (ids[i], tenant, version, list(LAYERS), *sides)

    columns = [("query_id", "uuid"), ("tenant_id", "uuid"), ("version_id", "uuid"), ("layers", "int4[]")]
    columns += [("help", "bytea"), ("harm", "bytea")]
    vectors.copy_rows(session, "query_representations", columns, representations())


def _structured(random: np.random.Generator, count: int) -> Vector:
    """(count, D) unit vectors whose variance along the i-th of 512 axes falls as 1 / i."""
    latent = random.standard_normal((count, 512), dtype=np.float32) / np.sqrt(np.arange(1, 513, dtype=np.float32))
    axes = np.random.default_rng(1).standard_normal((512, D), dtype=np.float32)
    rows = latent @ axes
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _isotropic_recall(random: np.random.Generator) -> float:
    """The same search in numpy, on independent directions."""
    points = random.standard_normal((N + 200, D), dtype=np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    short = vectors.sketch(points)
    found, exact = [], []
    for query, brief in zip(points[N:], short[N:], strict=True):
        cosines = points[:N] @ query
        candidates = np.argsort(np.linalg.norm(short[:N] - brief, axis=1))[:CANDIDATES]
        found.append(list(candidates[np.argsort(-cosines[candidates])[:K]]))
        exact.append(list(np.argsort(-cosines)[:K]))
    return _recall(found, exact)


def _recall(found: Sequence[Sequence[object]], exact: Sequence[Sequence[object]]) -> float:
    return float(np.mean([len(set(f) & set(e)) / K for f, e in zip(found, exact, strict=True)]))


if __name__ == "__main__":
    run().print()
