"""What fits produce: texts by the ORM, vectors by binary COPY and binary reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from profiles import vectors
from profiles.ids import new_id
from profiles.models import DirectionRow, FitQueryRow, PreferencePairRow, QueryRepresentations
from profiles.paging import Page, fetch_page
from profiles.vectors import Vector

#: The kinds of representation that a neighbourhood can be read with.
SIDES = ("help", "harm", "plain")

#: How many candidates the sketch proposes for the exact ranking (at least; always 4 K). Measured in bench/lookup.py.
CANDIDATES = 64


@dataclass(frozen=True)
class Neighbourhood:
    """The K nearest fit queries of a version, nearest first, with their representations at the edited layers.

    Args:
        query_ids: K ids. similarities: (K,) cosines.
        layers: L edited layers, ascending.
        help, harm, plain: (K, L, D) float32; None where it was not asked for.
    """

    query_ids: tuple[UUID, ...]
    similarities: Vector
    layers: tuple[int, ...]
    help: Vector | None
    harm: Vector | None
    plain: Vector | None


@dataclass(frozen=True)
class StoredDirections:
    """A version's own directions, by edited layer.

    Args:
        layers: L layers, ascending. theta_help, theta_harm, theta: (L, D) float32. tau: (L,) float32.
        Each is None when the method has none.
    """

    layers: tuple[int, ...]
    theta_help: Vector | None
    theta_harm: Vector | None
    theta: Vector | None
    tau: Vector | None


class Fits:
    """Queries on a version's content. Callers have checked the tenant of the version."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # Queries and pairs

    def add_queries(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Stores fit queries by (version, position); those that are there stay as they are."""
        if rows:
            statement = insert(FitQueryRow).values([{"id": new_id(), **row} for row in rows])
            self._session.execute(statement.on_conflict_do_nothing(index_elements=["version_id", "position"]))

    def queries(self, version_id: UUID) -> list[FitQueryRow]:
        statement = select(FitQueryRow).where(FitQueryRow.version_id == version_id).order_by(FitQueryRow.position)
        return list(self._session.scalars(statement))

    def query_ids(self, version_id: UUID, positions: Sequence[int]) -> dict[int, UUID]:
        statement = select(FitQueryRow.position, FitQueryRow.id).where(
            FitQueryRow.version_id == version_id, FitQueryRow.position.in_(positions)
        )
        return {row.position: row.id for row in self._session.execute(statement)}

    def upsert_pairs(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Stores some columns of preference pairs by query; writing the same chunk twice changes nothing."""
        if rows:
            statement = insert(PreferencePairRow).values(list(rows))
            fresh = {name: statement.excluded[name] for name in columns}
            self._session.execute(statement.on_conflict_do_update(index_elements=["query_id"], set_=fresh))

    def drop_pair(self, tenant_id: UUID, version_id: UUID, position: int, reason: str) -> None:
        """Notes why a query's pair is not used."""
        row = {
            "query_id": self.query_ids(version_id, [position])[position],
            "tenant_id": tenant_id,
            "version_id": version_id,
            "dropped": reason[:200],
        }
        self.upsert_pairs([row], ["dropped"])

    def pairs(self, version_id: UUID) -> list[tuple[int, PreferencePairRow]]:
        """(position, pair) of all pairs of a version, by position."""
        statement = (
            select(FitQueryRow.position, PreferencePairRow)
            .join(FitQueryRow, FitQueryRow.id == PreferencePairRow.query_id)
            .where(PreferencePairRow.version_id == version_id)
            .order_by(FitQueryRow.position)
        )
        return [(row[0], row[1]) for row in self._session.execute(statement)]

    def query_page(self, version_id: UUID, cursor: str | None, limit: int) -> Page[FitQueryRow]:
        statement = select(FitQueryRow).where(FitQueryRow.version_id == version_id)
        return fetch_page(self._session, statement, FitQueryRow.position, cursor, limit, newest_first=False)

    def pairs_of(self, query_ids: Sequence[UUID]) -> dict[UUID, PreferencePairRow]:
        statement = select(PreferencePairRow).where(PreferencePairRow.query_id.in_(query_ids))
        return {row.query_id: row for row in self._session.scalars(statement)}

    # Vectors

    def write_embeddings(self, version_id: UUID, positions: Sequence[int], embeddings: Vector) -> None:
        """Sets the embeddings (n, D) of existing queries and their sketches."""
        with vectors.binary_cursor(self._session) as cursor:
            cursor.executemany(
                "UPDATE fit_queries SET embedding = %b::vector, embedding_sketch = %b::vector"
                " WHERE version_id = %b AND position = %b",
                [
                    (vectors.parameter(row), vectors.parameter(short), version_id, position)
                    for position, row, short in zip(positions, embeddings, vectors.sketch(embeddings), strict=True)
                ],
            )

    def write_representations(
        self,
        tenant_id: UUID,
        version_id: UUID,
        query_ids: Sequence[UUID],
        layers: Sequence[int],
        sides: Mapping[str, Vector],
    ) -> None:
        """Replaces the representations of some queries.

        Args:
            layers: L, ascending. sides: "help", "harm", "plain" → (n, L, D) float32; a missing one is stored as NULL.
        """
        self._session.execute(
            delete(QueryRepresentations).where(QueryRepresentations.query_id.in_(query_ids)),
            execution_options={"synchronize_session": False},
        )

        def rows() -> Iterable[tuple[object, ...]]:
            for i, query_id in enumerate(query_ids):
                values = (vectors.pack(sides[side][i]) if side in sides else None for side in SIDES)
                yield (query_id, tenant_id, version_id, list(layers), *values)

        columns = [("query_id", "uuid"), ("tenant_id", "uuid"), ("version_id", "uuid"), ("layers", "int4[]")]
        columns += [(side, "bytea") for side in SIDES]
        vectors.copy_rows(self._session, "query_representations", columns, rows())

    def write_directions(self, tenant_id: UUID, version_id: UUID, directions: StoredDirections) -> None:
        """Replaces the version's own directions."""
        self._session.execute(
            delete(DirectionRow).where(DirectionRow.version_id == version_id),
            execution_options={"synchronize_session": False},
        )
        thetas = (directions.theta_help, directions.theta_harm, directions.theta)

        def rows() -> Iterable[tuple[object, ...]]:
            for i, layer in enumerate(directions.layers):
                wide = (None if theta is None else vectors.encode(theta[i]) for theta in thetas)
                tau = None if directions.tau is None else float(directions.tau[i])
                yield (version_id, layer, tenant_id, *wide, tau)

        columns = [("version_id", "uuid"), ("layer", "int4"), ("tenant_id", "uuid")]
        columns += [(name, "bytea") for name in ("theta_help", "theta_harm", "theta")]
        vectors.copy_rows(self._session, "directions", [*columns, ("tau", "float8")], rows())

    def directions(self, version_id: UUID) -> StoredDirections:
        """The version's own directions; no layers when nothing is stored."""
        with vectors.binary_cursor(self._session) as cursor:
            rows = cursor.execute(
                "SELECT layer, theta_help, theta_harm, theta, tau FROM directions WHERE version_id = %b ORDER BY layer",
                [version_id],
            ).fetchall()
        taus = [row[4] for row in rows]
        return StoredDirections(
            layers=tuple(row[0] for row in rows),
            theta_help=_stack([row[1] for row in rows]),
            theta_harm=_stack([row[2] for row in rows]),
            theta=_stack([row[3] for row in rows]),
            tau=None if not taus or taus[0] is None else np.array(taus, np.float32),
        )

    def count_complete(self, version_id: UUID, layers: Sequence[int]) -> tuple[int, int]:
        """(number of queries, number of queries that have an embedding and representations at just these layers)."""
        complete = FitQueryRow.embedding.is_not(None) & (QueryRepresentations.layers == list(layers))
        statement = (
            select(func.count(), func.count().filter(complete))
            .select_from(FitQueryRow)
            .outerjoin(QueryRepresentations, QueryRepresentations.query_id == FitQueryRow.id)
            .where(FitQueryRow.version_id == version_id)
        )
        row = self._session.execute(statement).one()
        return row[0], row[1]

    def nearest(self, version_id: UUID, embedding: Vector, k: int, sides: Sequence[str] = SIDES) -> Neighbourhood:
        """The K fit queries nearest to an embedding by cosine, with their representations, in one round trip.

        Two steps in one statement, both exact scans of the version's rows behind its btree (HNSW is slower and wrong
        with a filter): the in-line sketch proposes max(64, 4 K) candidates, the full vectors rank them. Up to 256
        dimensions, or up to that many queries, the result is exact; above, recall is measured in `bench/lookup.py`.

        Args:
            embedding: (D,) float32, unit length. sides: which representations to read; the others come as None.
        """
        wanted = [side for side in SIDES if side in sides]
        columns = "".join(f", r.{side}" for side in wanted)
        # The parameters' casts stand in subqueries, which run once: in a prepared statement's generic plan they would
        # run for every row that they are compared with. All vectors have unit length: inner products rank as cosines.
        statement = (
            "WITH candidates AS MATERIALIZED ("
            " SELECT id, position, embedding FROM fit_queries WHERE version_id = %(version)b"
            " AND embedding_sketch IS NOT NULL"
            f" ORDER BY embedding_sketch <-> (SELECT %(short)b::vector) LIMIT {max(CANDIDATES, 4 * k):d}),"
            " best AS MATERIALIZED ("
            " SELECT id, position, embedding <#> (SELECT %(wide)b::vector) AS distance FROM candidates"
            f" ORDER BY distance, position LIMIT {k:d})"
            f" SELECT b.id, b.distance, r.layers{columns} FROM best b"
            " JOIN query_representations r ON r.query_id = b.id ORDER BY b.distance, b.position"
        )
        wide = np.asarray(embedding, np.float32)
        values = {
            "version": version_id,
            "short": vectors.parameter(vectors.sketch(wide[None])[0]),
            "wide": vectors.parameter(wide),
        }
        with vectors.binary_cursor(self._session) as cursor:
            rows = cursor.execute(statement, values).fetchall()
        layers = tuple(rows[0][2]) if rows else ()
        read = {side: _unpack([row[3 + i] for row in rows], len(layers)) for i, side in enumerate(wanted)}
        return Neighbourhood(
            query_ids=tuple(row[0] for row in rows),
            similarities=np.array([-row[1] for row in rows], np.float32),
            layers=layers,
            help=read.get("help"),
            harm=read.get("harm"),
            plain=read.get("plain"),
        )


def _stack(raw: Sequence[bytes | None]) -> Vector | None:
    """Vectors in binary form as one array; None when there are none, or the column is NULL."""
    present = _present(raw)
    return None if present is None else vectors.decode_many(present)


def _unpack(raw: Sequence[bytes | None], layers: int) -> Vector | None:
    """Packed values of some layers each as one array; None when there are none, or the column is NULL."""
    present = _present(raw)
    return None if present is None else vectors.unpack_many(present, layers)


def _present(raw: Sequence[bytes | None]) -> list[bytes] | None:
    present = [value for value in raw if value is not None]
    return present if present and len(present) == len(raw) else None
