"""Time to a sample-conditional request's edit, from the database to the plan: `python -m bench lookup [--quick]`.

The embedded Postgres holds 1000 versions. The measured one has N fit queries of size D with representations of L
layers; each other one has 20 queries with small representations. Embeddings have a power-law spectrum, like those of
language models. The measured time begins once the query's embedding is known, and covers the check-out of a pooled
connection, the statement that reads the K nearest queries with their representations, and the plan. Every request has
another embedding.
"""

from __future__ import annotations

import time
from uuid import UUID

import numpy as np
import torch
from sqlalchemy import text

from alignez_core.methods.alignez import neighbor_plan
from alignez_core.spec.config import FitConfig
from bench.processes import Database, database
from bench.report import Report
from profiles import vectors
from profiles.models import Profile, ProfileVersion, VersionState
from profiles.models.base import new_id
from profiles.repository.fits import CANDIDATES
from profiles.service import create_tenant, nearest_representations
from profiles.uow import PLATFORM, UnitOfWork
from profiles.vectors import Vector

D, L, K, N = 4096, 5, 10, 1000
FILL, WARM_UP = 20, 50
_QUERIES = [("id", "uuid"), ("tenant_id", "uuid"), ("version_id", "uuid"), ("position", "int4"), ("text", "text"),
            ("source", "text"), ("embedding", "vector"), ("embedding_sketch", "vector")]  # fmt: skip
_REPRESENTATIONS = [("query_id", "uuid"), ("tenant_id", "uuid"), ("version_id", "uuid"), ("layers", "int4[]"),
                    ("help", "bytea"), ("harm", "bytea")]  # fmt: skip


def run(quick: bool = False) -> Report:
    """Measures the lookup, and the recall of the search by sketch."""
    versions, requests = (50, 100) if quick else (1000, 500)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    bank = _structured(random, N + WARM_UP + requests)
    stored, queries = bank[:N], bank[N:]
    title = f"D={D}, L={L}, K={K}, N={N}, among {versions} versions, {requests} requests one after another"
    report = Report("lookup", title, ("p50", "p95"))
    with database() as data:
        version_id, ids = _fill(data, versions, stored, random)
        config, seconds, found = FitConfig(method="alignez"), [], []
        for query in queries:
            started = time.perf_counter()
            with UnitOfWork.reading(data.sessions, PLATFORM) as uow:
                near = nearest_representations(uow, version_id, query, K)
            read = time.perf_counter()
            if near.help is None or near.harm is None:
                raise RuntimeError("the measured version has no representations")
            neighbor_plan(config, near.layers, torch.from_numpy(near.help), torch.from_numpy(near.harm), 1.0)
            seconds.append((read - started, time.perf_counter() - read))
            found.append(list(near.query_ids))
    timed = np.array(seconds[WARM_UP:]) * 1e3
    for name, ms in (("nearest queries", timed[:, 0]), ("SVD and plan", timed[:, 1]), ("both", timed.sum(1))):
        report.add(name, *(float(np.percentile(ms, q)) for q in (50, 95)), unit="ms")
    report.add("both, p50", float(np.percentile(timed.sum(1), 50)), unit="ms", most=5)
    exact = [[ids[i] for i in np.argsort(-(stored @ query), kind="stable")[:K]] for query in queries]
    recall = np.mean([len(set(f) & set(e)) / K for f, e in zip(found, exact, strict=True)])
    report.add(f"recall, {CANDIDATES} candidates by sketch, then exact", float(recall))
    return report


def _fill(data: Database, count: int, stored: Vector, random: np.random.Generator) -> tuple[UUID, list[UUID]]:
    """Writes all versions; returns the measured one, from their middle, and its query ids by position."""
    versions, ids = [new_id() for _ in range(count)], [new_id() for _ in range(N)]
    measured, filler = versions[count // 2], _structured(random, FILL)
    with UnitOfWork.open(data.sessions, PLATFORM) as uow:
        tenant = create_tenant(uow, "bench").id
        profile = Profile(tenant_id=tenant, name="bench")
        uow.session.add(profile)
        uow.session.flush()
        common = {"tenant_id": tenant, "profile_id": profile.id, "state": VersionState.PENDING, "spec": {}}
        uow.session.add_all(ProfileVersion(id=id_, number=i + 1, **common) for i, id_ in enumerate(versions))
        uow.session.flush()
        for version in versions:
            own, rows = (ids, stored) if version == measured else ([new_id() for _ in range(FILL)], filler)
            width = D if version == measured else 8  # a thousand versions of full size would take 240 GB
            wide = enumerate(zip(own, rows, vectors.sketch(rows), strict=True))
            sides = (vectors.pack(np.stack([row[:width] + 0.1 * layer for layer in range(L)])) for row in rows)
            vectors.insert_rows(uow.session, "fit_queries", _QUERIES, (
                (id_, tenant, version, i, f"query {i}", "given", vectors.parameter(row), vectors.parameter(brief))
                for i, (id_, row, brief) in wide
            ))  # fmt: skip
            vectors.insert_rows(uow.session, "query_representations", _REPRESENTATIONS, (
                (id_, tenant, version, list(range(L)), side, side) for id_, side in zip(own, sides, strict=True)
            ))  # fmt: skip
    with data.owner() as session, session.begin():
        session.execute(text("ANALYZE"))  # as autovacuum does before a version is used
    return measured, ids


def _structured(random: np.random.Generator, count: int) -> Vector:
    """(count, D) unit vectors whose variance along the i-th of 512 axes falls as 1 / i."""
    latent = random.standard_normal((count, 512), dtype=np.float32) / np.sqrt(np.arange(1, 513, dtype=np.float32))
    rows = latent @ np.random.default_rng(1).standard_normal((512, D), dtype=np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
