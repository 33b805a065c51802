"""Vectors in their stored forms, and the projection that stored sketches were made with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from profiles import vectors
from profiles.models import SKETCH_SIZE
from profiles.vectors import Vector


def rows(n: int, width: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def test_the_projection_never_changes() -> None:
    """Another one would make every stored sketch wider than `SKETCH_SIZE` dimensions worthless."""
    projection = vectors.sketch(np.eye(512, dtype=np.float32))
    assert projection.shape == (512, SKETCH_SIZE)
    digest = hashlib.sha256(projection.astype("<f4").tobytes()).hexdigest()
    assert digest == "b8c87b221326362919d5bc727da16ec3f1875ac5b8f73f7aab7eceeac59e4fc4"


@pytest.mark.parametrize("width", [1, 6, SKETCH_SIZE])
def test_up_to_its_size_a_sketch_is_the_embedding_itself(width: int) -> None:
    embeddings = rows(3, width)
    assert np.array_equal(vectors.sketch(embeddings), embeddings)


@pytest.mark.parametrize("width", [SKETCH_SIZE + 1, 512, 4096])
def test_a_sketch_keeps_squared_distances_to_about_nine_percent(width: int) -> None:
    embeddings = rows(60, width)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    short = vectors.sketch(embeddings)
    assert short.shape == (60, SKETCH_SIZE)
    assert short.dtype == np.dtype(np.float32)
    pairs = np.triu_indices(60, 1)
    full = ((embeddings[pairs[0]] - embeddings[pairs[1]]) ** 2).sum(axis=1)
    estimate = ((short[pairs[0]] - short[pairs[1]]) ** 2).sum(axis=1)
    error = estimate / full - 1
    assert abs(error.mean()) < 0.03
    assert error.std() == pytest.approx((2 / SKETCH_SIZE) ** 0.5, rel=0.2)


@pytest.mark.parametrize("width", [1, 6, 512, 4096])
def test_pgvectors_form_round_trips(width: int) -> None:
    given = rows(5, width)
    given[0, 0] = np.float32(-0.0)
    given[1, 0] = np.finfo(np.float32).tiny
    raw = [vectors.encode(row) for row in given]
    assert {len(one) for one in raw} == {4 + 4 * width}
    for one, row in zip(raw, given, strict=True):
        assert np.frombuffer(one, ">f4", offset=4).astype(np.float32).tobytes() == row.tobytes()


@pytest.mark.parametrize("width", [1, 6, 512, 4096])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e30])
def test_the_packed_form_keeps_fifteen_bits_of_each_row_whatever_its_size(width: int, size: float) -> None:
    given = np.stack([rows(3, width, seed) * np.float32(size) for seed in range(5)])
    given[:, 1] *= 1e-6  # rows of one value have scales of their own
    raw = [vectors.pack(value) for value in given]
    assert {len(one) for one in raw} == {3 * (4 + 2 * width)}
    error = np.abs(vectors.unpack_many(raw, 3) - given) / np.abs(given).max(-1, keepdims=True)
    assert error.max() <= 2.0**-15.9


def test_a_packed_value_is_its_rows_one_after_the_other() -> None:
    """What the migration from one value a layer rests on."""
    given = rows(3, 6)
    assert vectors.pack(given) == b"".join(vectors.pack(row[None]) for row in given)


def test_a_packed_zero_is_zero() -> None:
    assert not vectors.unpack_many([vectors.pack(np.zeros((2, 4), np.float32))], 2).any()


def test_one_sketch_is_the_sketch_of_many() -> None:
    embeddings = rows(5, 512)
    alone = [vectors.sketch(row[None])[0] for row in embeddings]
    np.testing.assert_allclose(alone, vectors.sketch(embeddings), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_stored(bad: float) -> None:
    given = rows(2, 8)
    given[1, 3] = bad
    with pytest.raises(ValueError, match="not a finite vector"):
        vectors.encode(given[1])
    with pytest.raises(ValueError, match="not finite vectors"):
        vectors.pack(given)


@pytest.mark.parametrize(("store", "dimensions"), [(vectors.encode, 1), (vectors.pack, 2)])
def test_only_the_right_number_of_dimensions_is_stored(store: Callable[[Vector], bytes], dimensions: int) -> None:
    given = rows(2, 8)
    with pytest.raises(ValueError, match=r"\(2, 8\)" if dimensions == 1 else r"\(8,\)"):
        store(given if dimensions == 1 else given[0])
