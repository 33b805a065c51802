"""Content of versions: texts by the ORM, vectors in binary form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from uuid import UUID

import numpy as np
from psycopg.rows import TupleRow
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, selectinload

from profiles import vectors
from profiles.models import Evaluation, FitQueryRow, PreferencePairRow, QueryRepresentations, QuerySplit, VersionEdit
from profiles.models.base import new_id
from profiles.paging import Page, fetch_page
from profiles.vectors import Vector

#: The kinds of representation in a neighbourhood.
SIDES = ("help", "harm")

#: Least number of candidates for the exact ranking (see `bench.service.lookup`); there are at least 4 K.
CANDIDATES = 64


@dataclass(frozen=True)
class Neighbourhood:
    """The K nearest fit queries of a version, nearest first, with their representations at the edited layers.

    Args:
        query_ids: K ids. similarities: (K,) cosines.
        layers: L edited layers, ascending.
        help, harm: (K, L, D) float32; None if not requested.
    """

    query_ids: tuple[UUID, ...]
    similarities: Vector
    layers: tuple[int, ...]
    help: Vector | None
    harm: Vector | None


@dataclass(frozen=True)
class NearestGroups:
    """The K nearest fit queries of a version, nearest first, with the groups that they vote for.

    Args:
        query_ids: K ids. similarities: (K,) cosines. groups: K group numbers.
    """

    query_ids: tuple[UUID, ...]
    similarities: Vector
    groups: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class StoredEdit:
    """One group's edit over L layers: y = x + (x·Uᵀ + c)·V. Args: u, v: (L, R, D), c: (L, R), float32."""

    u: Vector
    v: Vector
    c: Vector


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Representations of a version's fit queries.

    Args:
        positions: N, ascending. layers: L, ascending. help, harm: (N, L, D) float32.
    """

    positions: tuple[int, ...]
    layers: tuple[int, ...]
    help: Vector
    harm: Vector


class Fits:
    """Queries on a version's content. Callers have to check the tenant of the version."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # Queries and pairs

    def add_queries(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Stores fit queries by (version, position); updates only split and group of existing ones."""
        if rows:
            statement = insert(FitQueryRow).values([{"id": new_id(), **row} for row in rows])
            fresh = {name: statement.excluded[name] for name in ("split", "persona_group")}
            self._session.execute(
                statement.on_conflict_do_update(index_elements=["version_id", "position"], set_=fresh),
                execution_options={"synchronize_session": False},
            )

    def queries(self, version_id: UUID) -> list[FitQueryRow]:
        statement = select(FitQueryRow).where(FitQueryRow.version_id == version_id).order_by(FitQueryRow.position)
        return list(self._session.scalars(statement))

    def query_ids(self, version_id: UUID, positions: Sequence[int]) -> dict[int, UUID]:
        statement = select(FitQueryRow.position, FitQueryRow.id).where(
            FitQueryRow.version_id == version_id, FitQueryRow.position.in_(positions)
        )
        return {row.position: row.id for row in self._session.execute(statement)}

    def upsert_pairs(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Stores some columns of preference pairs by query. A repetition changes nothing."""
        if rows:
            statement = insert(PreferencePairRow).values(list(rows))
            fresh = {name: statement.excluded[name] for name in columns}
            self._session.execute(statement.on_conflict_do_update(index_elements=["query_id"], set_=fresh))

    def drop_pair(self, tenant_id: UUID, version_id: UUID, position: int, reason: str) -> None:
        """Marks a query as unused, with the reason."""
        row = {
            "query_id": self.query_ids(version_id, [position])[position],
            "tenant_id": tenant_id,
            "version_id": version_id,
            "dropped": reason[:200],
        }
        self.upsert_pairs([row], ["dropped"])
        self._session.execute(
            update(FitQueryRow).where(FitQueryRow.id == row["query_id"]).values(split=QuerySplit.UNUSED),
            execution_options={"synchronize_session": "fetch"},
        )

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
        """The queries with their pairs."""
        statement = select(FitQueryRow).where(FitQueryRow.version_id == version_id)
        statement = statement.options(selectinload(FitQueryRow.pair))
        return fetch_page(self._session, statement, FitQueryRow.position, cursor, limit, newest_first=False)

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
            layers: L, ascending. sides: "help", "harm" → (n, L, D) float32; a missing side is stored as NULL.
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
        vectors.insert_rows(self._session, "query_representations", columns, rows())

    def representations(self, version_id: UUID) -> StoredRows | None:
        """All representations of a version; None if there are none."""
        with vectors.binary_cursor(self._session) as cursor:
            rows = cursor.execute(
                "SELECT q.position, r.layers, r.help, r.harm FROM query_representations r"
                " JOIN fit_queries q ON q.id = r.query_id WHERE r.version_id = %b"
                " AND r.help IS NOT NULL AND r.harm IS NOT NULL ORDER BY q.position",
                [version_id],
            ).fetchall()
        if not rows:
            return None
        layers = tuple(rows[0][1])
        help_, harm = (vectors.unpack_many([row[i] for row in rows], len(layers)) for i in (2, 3))
        return StoredRows(tuple(row[0] for row in rows), layers, help_, harm)

    def write_edits(
        self, tenant_id: UUID, version_id: UUID, layers: Sequence[int], edits: Sequence[StoredEdit]
    ) -> None:
        """Replaces the version's edits, one per group."""
        self._session.execute(
            delete(VersionEdit).where(VersionEdit.version_id == version_id),
            execution_options={"synchronize_session": False},
        )

        def rows() -> Iterable[tuple[object, ...]]:
            for group, edit in enumerate(edits):
                for i, layer in enumerate(layers):
                    tables = (vectors.to_bytes(table[i]) for table in (edit.u, edit.v, edit.c))
                    yield (version_id, group, layer, tenant_id, *tables)

        columns = [("version_id", "uuid"), ("persona_group", "int4"), ("layer", "int4"), ("tenant_id", "uuid")]
        columns += [(name, "bytea") for name in ("u", "v", "c")]
        vectors.insert_rows(self._session, "version_edits", columns, rows())

    def edits(self, version_id: UUID) -> tuple[StoredEdit, ...]:
        """The version's edits by group; none for a prefix alone."""
        with vectors.binary_cursor(self._session) as cursor:
            rows = cursor.execute(
                "SELECT persona_group, u, v, c FROM version_edits WHERE version_id = %b ORDER BY persona_group, layer",
                [version_id],
            ).fetchall()
        return tuple(_edit([row[1:] for row in of_group]) for _, of_group in groupby(rows, lambda row: row[0]))

    def count_complete(self, version_id: UUID, layers: Sequence[int] | None) -> int:
        """Number of queries with an embedding and, if `layers` is given, with representations at these layers."""
        statement = (
            select(func.count())
            .select_from(FitQueryRow)
            .where(FitQueryRow.version_id == version_id, FitQueryRow.embedding.is_not(None))
        )
        if layers is not None:
            statement = statement.join(QueryRepresentations, QueryRepresentations.query_id == FitQueryRow.id).where(
                QueryRepresentations.layers == list(layers)
            )
        return self._session.scalars(statement).one()

    # Evaluations

    def add_evaluation(self, evaluation: Evaluation) -> None:
        self._session.add(evaluation)
        self._session.flush()

    def latest_evaluation(self, version_id: UUID, judge: str | None) -> Evaluation | None:
        """The last evaluation, or the last one by a judge ("openai" includes all "openai:MODEL")."""
        statement = select(Evaluation).where(Evaluation.version_id == version_id)
        if judge is not None:
            named = Evaluation.judge == judge
            statement = statement.where(named | Evaluation.judge.startswith(f"{judge}:", autoescape=True))
        return self._session.scalars(statement.order_by(Evaluation.id.desc()).limit(1)).one_or_none()

    # Neighbours

    def nearest(self, version_id: UUID, embedding: Vector, k: int, sides: Sequence[str] = SIDES) -> Neighbourhood:
        """The K fit queries nearest to an embedding by cosine, with their representations, in one round trip.

        One statement scans the version's rows, found by a btree, in two steps: the in-line sketch yields max(64, 4 K)
        candidates, and the full vectors rank them. HNSW is slower, and wrong with a filter. Up to 256 dimensions, or
        up to that many queries, the result is exact; `bench.service.lookup` measures the recall above.

        Args:
            embedding: (D,) float32, unit length. sides: representations to read; others are None.
        """
        wanted = [side for side in SIDES if side in sides]
        columns = "".join(f", r.{side}" for side in wanted)
        rows = self._ranked(
            version_id, embedding, k, f"r.layers{columns}", "JOIN query_representations r ON r.query_id = b.id"
        )
        layers = tuple(rows[0][2]) if rows else ()
        read = {side: _unpack([row[3 + i] for row in rows], len(layers)) for i, side in enumerate(wanted)}
        return Neighbourhood(
            query_ids=tuple(row[0] for row in rows),
            similarities=np.array([-row[1] for row in rows], np.float32),
            layers=layers,
            help=read.get("help"),
            harm=read.get("harm"),
        )

    def nearest_groups(self, version_id: UUID, embedding: Vector, k: int) -> NearestGroups:
        """The K fit queries nearest to an embedding by cosine, with their groups; searched as `nearest` does.

        Args:
            embedding: (D,) float32, unit length.
        """
        rows = self._ranked(version_id, embedding, k, "b.persona_group")
        return NearestGroups(
            query_ids=tuple(row[0] for row in rows),
            similarities=np.array([-row[1] for row in rows], np.float32),
            groups=tuple(row[2] for row in rows),
        )

    def _ranked(self, version_id: UUID, embedding: Vector, k: int, columns: str, join: str = "") -> list[TupleRow]:
        """(query id, negative cosine, *columns) of the K nearest, nearest first."""
        # The parameters are cast in subqueries, which run once; in a prepared statement's generic plan, other casts run
        # for every row. All vectors have unit length, so inner products rank like cosines.
        statement = (
            "WITH candidates AS MATERIALIZED ("
            " SELECT id, position, persona_group, embedding FROM fit_queries WHERE version_id = %(version)b"
            " AND embedding_sketch IS NOT NULL"
            f" ORDER BY embedding_sketch <-> (SELECT %(short)b::vector) LIMIT {max(CANDIDATES, 4 * k):d}),"
            " best AS MATERIALIZED ("
            " SELECT id, position, persona_group, embedding <#> (SELECT %(wide)b::vector) AS distance FROM candidates"
            f" ORDER BY distance, position LIMIT {k:d})"
            f" SELECT b.id, b.distance, {columns} FROM best b {join} ORDER BY b.distance, b.position"
        )
        wide = np.asarray(embedding, np.float32)
        values = {
            "version": version_id,
            "short": vectors.parameter(vectors.sketch(wide[None])[0]),
            "wide": vectors.parameter(wide),
        }
        with vectors.binary_cursor(self._session) as cursor:
            return cursor.execute(statement, values).fetchall()


def _edit(rows: Sequence[Sequence[bytes]]) -> StoredEdit:
    """One group's edit from its (u, v, c) by layer."""
    c = np.stack([vectors.from_bytes(row[2]) for row in rows])
    u, v = (np.stack([vectors.from_bytes(row[i]).reshape(c.shape[1], -1) for row in rows]) for i in (0, 1))
    return StoredEdit(u, v, c)


def _unpack(raw: Sequence[bytes | None], layers: int) -> Vector | None:
    """Packed values as one array; None if there are none or the column is NULL."""
    present = [value for value in raw if value is not None]
    return vectors.unpack_many(present, layers) if present and len(present) == len(raw) else None
