"""Vectors to and from Postgres in binary form, and the in-line sketch of an embedding.

Printing and parsing pgvector's text form of 150 vectors of 4096 numbers takes tens of milliseconds. The binary form is
a 4-byte header and the float32 numbers, so reading needs no copy and writing needs one.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from psycopg.rows import TupleRow
from sqlalchemy.orm import Session

from profiles.models.fits import SKETCH_SIZE

Vector = npt.NDArray[np.float32]

_STEPS = np.float32(32767)


class _Parameter:
    """A query parameter: (D,) numbers, sent in pgvector's binary form."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector


class _ParameterDumper(Dumper):
    format = Format.BINARY
    oid = 0  # the oid of an extension's type differs between databases; Postgres takes the type from the cast

    def dump(self, obj: _Parameter) -> Buffer | None:
        return encode(obj.vector)


def parameter(vector: Vector) -> Any:
    """The vector as a parameter of a `binary_cursor` statement; write `%b::vector` in the SQL.

    Raises: ValueError: when the statement is sent, as `encode`.
    """
    return _Parameter(vector)


def binary_cursor(session: Session) -> psycopg.Cursor[TupleRow]:
    """A psycopg cursor on the session's connection and transaction; it returns vector columns as bytes."""
    connection = session.connection().connection.driver_connection
    if not isinstance(connection, psycopg.Connection):
        raise TypeError("the database URL must use the psycopg driver: postgresql+psycopg://…")
    cursor = connection.cursor(binary=True)
    cursor.adapters.register_dumper(_Parameter, _ParameterDumper)
    return cursor


def encode(vector: Vector) -> bytes:
    """(D,) numbers as pgvector's binary form. Raises: ValueError: not finite, or not one-dimensional."""
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ValueError(f"not a finite vector: shape {vector.shape}")
    return struct.pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes()


def to_bytes(table: Vector) -> bytes:
    """Numbers of any shape as little-endian float32, for tables that must be restored bit by bit.

    Raises: ValueError: not finite.
    """
    if not np.isfinite(table).all():
        raise ValueError(f"not finite: shape {table.shape}")
    return np.ascontiguousarray(table, "<f4").tobytes()


def from_bytes(raw: bytes) -> Vector:
    """The numbers of `to_bytes` as one row; the caller knows their shape."""
    return np.frombuffer(raw, "<f4").astype(np.float32)


def pack(rows: Vector) -> bytes:
    """(L, D) numbers as the bytes of a `bytea`.

    Each row is its largest magnitude as float32, then each number's share of it in 32767ths as int16, little-endian.

    For vectors that no SQL compares. Postgres returns a `bytea` unchanged, but a `vector` number by number. A lookup
    costs as much as it reads (`bench.service.lookup`), and two bytes per number halve that. The error is at most 2^-16
    of the row's largest number, and no activation is too large. numpy converts float16 to float32 twenty times slower.

    Raises: ValueError: not finite, or not two-dimensional.
    """
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"not finite vectors: shape {rows.shape}")
    packed = np.empty(len(rows), _packed(rows.shape[1]))
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    largest[largest == 0] = 1.0
    packed["largest"] = largest
    packed["steps"] = np.rint(rows / largest[:, None] * _STEPS)
    return packed.tobytes()


def unpack_many(raw: Sequence[bytes], layers: int) -> Vector:
    """(n, L, D) float32 from n packed values of L rows each.

    The memory layout is (L, n, D), because readers use all rows of a layer together.
    """
    kind = _packed((len(raw[0]) // layers - 4) // 2)
    vectors = np.empty((layers, len(raw), *kind["steps"].shape), np.float32)
    largest = np.empty((layers, len(raw), 1), np.float32)
    for i, value in enumerate(raw):
        rows = np.frombuffer(value, kind)
        vectors[:, i] = rows["steps"]
        largest[:, i, 0] = rows["largest"]
    vectors *= largest / _STEPS
    return vectors.transpose(1, 0, 2)


@functools.lru_cache(maxsize=16)
def _packed(width: int) -> np.dtype[np.void]:
    return np.dtype([("largest", "<f4"), ("steps", "<i2", (width,))])


def insert_rows(
    session: Session, table: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]
) -> None:
    """Inserts rows with binary parameters, sent without waiting for each row's answer.

    COPY would be faster, but Postgres refuses it on tables with row-level security.

    Args:
        columns: (name, type) pairs; the values of a vector column are those of `parameter`.
    """
    names = ", ".join(name for name, _ in columns)
    values = ", ".join(f"%b::{kind}" for _, kind in columns)
    with binary_cursor(session) as cursor:
        cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({values})", rows)


@functools.lru_cache(maxsize=4)
def _projection(width: int) -> Vector:
    """(width, SKETCH_SIZE) fixed Gaussian projection. It must never change, because stored sketches depend on it."""
    # RandomState, because its streams never change; those of a Generator may change between numpy's releases.
    normal: Vector = np.random.RandomState(width).standard_normal((width, SKETCH_SIZE)).astype(np.float32)
    return normal / np.float32(math.sqrt(SKETCH_SIZE))


def sketch(embeddings: Vector) -> Vector:
    """(n, min(D, SKETCH_SIZE)) sketches, whose Euclidean distances estimate those of the embeddings.

    Up to SKETCH_SIZE dimensions, a sketch is the embedding itself and a search by sketch is exact. Above, a random
    projection keeps each squared distance to within about √(2 / SKETCH_SIZE) ≈ 9 % (one standard deviation) for any
    data (Johnson and Lindenstrauss, 1984), so the candidates of a search are then ranked exactly.

    Args:
        embeddings: (n, D) float32, rows of unit length.
    """
    width = embeddings.shape[1]
    if width <= SKETCH_SIZE:
        return embeddings
    if len(embeddings) == 1:
        # Not BLAS: after a product, its threads spin for milliseconds, which slows the search down (by a factor of
        # four on two cores).
        return np.asarray(np.einsum("nd,dk->nk", embeddings, _projection(width)), np.float32)
    return np.asarray(embeddings @ _projection(width), np.float32)
