"""The nearest fit queries of a version, on real Postgres, against numpy's brute force."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest

from profiles.models import SKETCH_SIZE
from profiles.repository.fits import CANDIDATES, SIDES
from profiles.service import nearest_groups, nearest_representations
from profiles.uow import UnitOfWork
from profiles.vectors import Vector
from tests.factories import Content, Factory, make_content

N = 150
WIDTH = 512
K = 10


def unit(rows: npt.NDArray[np.floating[Any]]) -> Vector:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def clustered(seed: int = 0) -> Content:
    """N queries around 12 topics, as real ones are: wider than a sketch and more than its candidates."""
    content = make_content(N, WIDTH, seed=seed)
    random = np.random.default_rng(seed)
    topics = random.standard_normal((12, WIDTH))
    content.embeddings[:] = unit(topics[random.integers(0, 12, N)] + 0.7 * random.standard_normal((N, WIDTH)))
    return content


def brute_force(content: Content, query: Vector, k: int) -> list[int]:
    return [int(i) for i in np.argsort(-(content.embeddings.astype(np.float64) @ query), kind="stable")[:k]]


def positions(uow: UnitOfWork, version_id: UUID, ids: tuple[UUID, ...]) -> list[int]:
    rows = {row.id: row.position for row in uow.repository.fits.queries(version_id)}
    return [rows[i] for i in ids]


def test_the_sizes_make_the_sketch_and_its_candidates_matter() -> None:
    assert WIDTH > SKETCH_SIZE
    assert max(CANDIDATES, 4 * K) < N


def test_wide_embeddings_of_many_queries_find_what_brute_force_finds(uow: UnitOfWork, make: Factory) -> None:
    content = clustered()
    version = make.ready(make.caller(), content=content).version
    random = np.random.default_rng(1)
    # Queries as they come: near a stored one, and the stored one itself.
    for i in (3, 77, 149):
        for noise in (0.0, 0.03):
            query = unit(content.embeddings[i] + noise * random.standard_normal(WIDTH))
            found = nearest_representations(uow, version.id, query, K)
            expected = brute_force(content, query, K)
            assert positions(uow, version.id, found.query_ids) == expected
            assert found.similarities == pytest.approx(content.embeddings[expected] @ query, abs=1e-5)
            assert found.layers == content.layers
            for side in SIDES:
                np.testing.assert_allclose(getattr(found, side), content.sides[side][expected], atol=1e-4)


def test_as_many_neighbours_as_there_are_queries_is_all_of_them(uow: UnitOfWork, make: Factory) -> None:
    content = clustered(2)
    version = make.ready(make.caller(), content=content).version
    found = nearest_representations(uow, version.id, content.embeddings[0], N)
    assert positions(uow, version.id, found.query_ids) == brute_force(content, content.embeddings[0], N)


def test_only_the_asked_sides_are_read(uow: UnitOfWork, make: Factory) -> None:
    content = clustered(3)
    version = make.ready(make.caller(), content=content).version
    found = nearest_representations(uow, version.id, content.embeddings[5], 2, ("harm",))
    expected = brute_force(content, content.embeddings[5], 2)
    assert found.help is None
    assert found.harm is not None
    np.testing.assert_allclose(found.harm, content.sides["harm"][expected], atol=1e-4)


def test_neighbours_bring_their_groups_and_need_no_rows(uow: UnitOfWork, make: Factory) -> None:
    content = make_content(N, 64, groups=3, held_out=4)
    version = make.ready(make.caller(), content=content).version
    for i in (0, 77, 149):
        query = content.embeddings[i]
        found = nearest_groups(uow, version.id, query, K)
        expected = brute_force(content, query, K)
        assert positions(uow, version.id, found.query_ids) == expected
        assert found.groups == tuple(content.groups[j] for j in expected)
        assert found.similarities == pytest.approx(sorted(found.similarities, reverse=True))
    assert nearest_representations(uow, version.id, content.embeddings[0], K).query_ids == ()


def test_held_out_queries_are_nobodys_neighbours(uow: UnitOfWork, make: Factory) -> None:
    content = make_content(6, held_out=5)
    version = make.ready(make.caller(), content=content).version
    assert sorted(
        positions(uow, version.id, nearest_representations(uow, version.id, content.embeddings[0], 50).query_ids)
    ) == list(range(6))


def test_other_versions_have_no_part_in_it(uow: UnitOfWork, make: Factory) -> None:
    caller = make.caller()
    content, other = clustered(4), clustered(5)
    first = make.ready(caller, content=content)
    make.ready(caller, profile=first.profile.id, content=other)
    found = nearest_representations(uow, first.version.id, other.embeddings[0], K)
    assert positions(uow, first.version.id, found.query_ids) == brute_force(content, other.embeddings[0], K)
