"""The results of a fit: queries, preference pairs, representations, edits and evaluations.

Vectors that SQL compares are pgvector columns without a fixed dimension, because base models differ in it. All other
vectors are bytes, which `profiles.vectors` writes and reads. The ORM classes define the schema; reads by them omit
vectors.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    CheckConstraint,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship

from profiles.models.base import Base, CreatedAt, PublicId, TenantId, same_tenant, state_column

#: Dimensions of `FitQueryRow.embedding_sketch`.
SKETCH_SIZE = 256


class QuerySource(StrEnum):
    GIVEN = "given"  #: by the caller
    BANK = "bank"  #: the shipped query bank
    INVENTED = "invented"  #: by the model itself
    PAIR = "pair"  #: the caller's ground-truth pair


class QuerySplit(StrEnum):
    """The use of a query. A version is judged on queries that were used neither for its fit nor for its tuning."""

    FIT = "fit"
    TUNE = "tune"
    HELD_OUT = "held_out"
    UNUSED = "unused"


class FitQueryRow(Base):
    """One query of a version. Queries of the fit split have embeddings if the version looks them up."""

    __tablename__ = "fit_queries"
    __table_args__ = (
        same_tenant("version_id", "profile_versions", "CASCADE"),
        UniqueConstraint("version_id", "position"),
        UniqueConstraint("id", "version_id"),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID]
    position: Mapped[int]  #: 0 to N − 1
    text: Mapped[str] = mapped_column(Text)
    preferred: Mapped[str | None] = mapped_column(Text)
    dispreferred: Mapped[str | None] = mapped_column(Text)
    source: Mapped[QuerySource] = mapped_column(state_column(QuerySource, "source"))
    split: Mapped[QuerySplit] = mapped_column(
        state_column(QuerySplit, "split"), default=QuerySplit.FIT, server_default=QuerySplit.FIT
    )
    #: Queries of one group share a persona; the version has one edit per group.
    persona_group: Mapped[int] = mapped_column(default=0, server_default="0")
    #: (D,) float32 of unit length, because the search uses inner products; stored out of line when wide.
    embedding: Mapped[list[float] | None] = deferred(mapped_column(VECTOR()))
    #: (SKETCH_SIZE,) projection of the embedding, stored in line: yields candidates without reading the wide column.
    embedding_sketch: Mapped[list[float] | None] = deferred(mapped_column(VECTOR()))
    #: Read-only, and loaded only by statements that ask for it.
    pair: Mapped[PreferencePairRow | None] = relationship(viewonly=True, lazy="raise")


def _same_version_as_query() -> ForeignKeyConstraint:
    """Binds a row to the version of its query, so that no row can be added to a ready version."""
    columns = ["query_id", "version_id"]
    return ForeignKeyConstraint(columns, ["fit_queries.id", "fit_queries.version_id"], ondelete="CASCADE")


class PreferencePairRow(Base):
    """The texts for one fit query, from the model or the caller. A field is None until its chunk is finished."""

    __tablename__ = "preference_pairs"
    __table_args__ = (
        same_tenant("version_id", "profile_versions", "CASCADE"),
        _same_version_as_query(),
    )

    query_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID] = mapped_column(index=True)
    help_characteristics: Mapped[str | None] = mapped_column(Text)
    harm_characteristics: Mapped[str | None] = mapped_column(Text)
    help_response: Mapped[str | None] = mapped_column(Text)
    harm_response: Mapped[str | None] = mapped_column(Text)
    #: Reason for not using the pair, such as an empty answer.
    dropped: Mapped[str | None] = mapped_column(String(200))


class QueryRepresentations(Base):
    """Representations of one fit query at all L edited layers: per side (L, D) numbers, packed by `vectors.pack`.

    The columns are bytes, because no SQL compares them and bytes are read in half the time of vectors. A number takes
    two bytes, because a lookup takes longer the more bytes it reads. A side is one value, because each value stored
    out of line costs a search. The version's own edits are fitted on full precision.
    """

    __tablename__ = "query_representations"
    __table_args__ = (
        same_tenant("version_id", "profile_versions", "CASCADE"),
        _same_version_as_query(),
    )

    query_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID] = mapped_column(index=True)
    layers: Mapped[list[int]] = mapped_column(ARRAY(Integer))  #: L, ascending
    help: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))
    harm: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))


class VersionEdit(Base):
    """The edit of one group of queries at one layer: y = x + (x·Uᵀ + c)·V, little-endian float32."""

    __tablename__ = "version_edits"
    __table_args__ = (same_tenant("version_id", "profile_versions", "CASCADE"),)

    version_id: Mapped[UUID] = mapped_column(primary_key=True)
    persona_group: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    layer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[TenantId]
    u: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))  #: (R, D)
    v: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))  #: (R, D)
    c: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))  #: (R,)


class Evaluation(Base):
    """One proof of a version, by its fit or by an evaluation job. A trigger refuses changes."""

    __tablename__ = "evaluations"
    __table_args__ = (
        same_tenant("version_id", "profile_versions", "CASCADE"),
        same_tenant("job_id", "jobs"),
        CheckConstraint("quality IN ('good', 'weak')", name="quality_known"),
        Index(None, "version_id", "id"),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID]
    job_id: Mapped[UUID] = mapped_column(unique=True)
    judge: Mapped[str] = mapped_column(Text)
    quality: Mapped[str] = mapped_column(String(16))
    reasons: Mapped[list[Any]]
    report: Mapped[dict[str, Any]]
    choice: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True)
    )  #: of a fit: the trace of its choice
    created_at: Mapped[CreatedAt]
