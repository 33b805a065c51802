"""What a fit leaves behind: queries, preference pairs, representations, edits and evaluations.

Vectors that SQL compares are pgvector columns without a dimension, because it differs from base model to base model.
All others are bytes, written and read by `profiles.vectors`; the ORM classes exist for the schema and for rows without
vectors.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column

from profiles.models.base import Base, CreatedAt, PublicId, TenantId, state_column

#: Dimensions of `FitQueryRow.embedding_sketch`.
SKETCH_SIZE = 256


class QuerySource(StrEnum):
    GIVEN = "given"  #: by the caller
    BANK = "bank"  #: the shipped query bank
    INVENTED = "invented"  #: by the model itself
    PAIR = "pair"  #: the caller's ground-truth pair


class QuerySplit(StrEnum):
    """What a query is for: nothing is judged on what it was fitted or chosen on."""

    FIT = "fit"
    TUNE = "tune"
    HELD_OUT = "held_out"
    UNUSED = "unused"


class FitQueryRow(Base):
    """One query of a version, in its order. The fit split of a version that looks something up has embeddings."""

    __tablename__ = "fit_queries"
    __table_args__ = (UniqueConstraint("version_id", "position"),)

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id", ondelete="CASCADE"))
    position: Mapped[int]  #: 0 to N − 1
    text: Mapped[str] = mapped_column(Text)
    preferred: Mapped[str | None] = mapped_column(Text)
    dispreferred: Mapped[str | None] = mapped_column(Text)
    source: Mapped[QuerySource] = mapped_column(state_column(QuerySource, "source"))
    split: Mapped[QuerySplit] = mapped_column(
        state_column(QuerySplit, "split"), default=QuerySplit.FIT, server_default=QuerySplit.FIT
    )
    #: Queries of one group have one persona; the version has one edit per group.
    persona_group: Mapped[int] = mapped_column(default=0, server_default="0")
    #: (D,) unit length (the search takes inner products), float32; out of line when wide.
    embedding: Mapped[list[float] | None] = deferred(mapped_column(VECTOR()))
    #: (SKETCH_SIZE,) projection of the embedding, always in line: finds candidates without reading the wide column.
    embedding_sketch: Mapped[list[float] | None] = deferred(mapped_column(VECTOR()))


class PreferencePairRow(Base):
    """What the model (or the caller) said for one fit query; a field is None until its chunk is finished."""

    __tablename__ = "preference_pairs"

    query_id: Mapped[UUID] = mapped_column(ForeignKey("fit_queries.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id", ondelete="CASCADE"), index=True)
    help_characteristics: Mapped[str | None] = mapped_column(Text)
    harm_characteristics: Mapped[str | None] = mapped_column(Text)
    help_response: Mapped[str | None] = mapped_column(Text)
    harm_response: Mapped[str | None] = mapped_column(Text)
    #: Why the pair is not used, if it is not (an empty answer, say).
    dropped: Mapped[str | None] = mapped_column(String(200))


class QueryRepresentations(Base):
    """Representations of one fit query at all L edited layers: per side one value of (L, D) numbers, in the order of
    `layers`, as `vectors.pack` writes them.

    Bytes and not vectors, because no SQL compares them and bytes are read in half the time; two bytes a number, because
    the lookup's time is the bytes that it reads; one value a side, because each value that lies out of line is a search
    of its own. The version's own edits are fitted on the full numbers.
    """

    __tablename__ = "query_representations"

    query_id: Mapped[UUID] = mapped_column(ForeignKey("fit_queries.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id", ondelete="CASCADE"), index=True)
    layers: Mapped[list[int]] = mapped_column(ARRAY(Integer))  #: L, ascending
    help: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))
    harm: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))


class VersionEdit(Base):
    """The edit of one group of queries at one layer: y = x + (x·Uᵀ + c)·V, little-endian float32."""

    __tablename__ = "version_edits"

    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id", ondelete="CASCADE"), primary_key=True)
    persona_group: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    layer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[TenantId]
    u: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))  #: (R, D)
    v: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))  #: (R, D)
    c: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))  #: (R,)


class Evaluation(Base):
    """One proof of a version: the fit's own, or that of an evaluation job. A job has one at most."""

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint("quality IN ('good', 'weak')", name="quality_known"),
        Index(None, "version_id", "id"),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id", ondelete="CASCADE"))
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    judge: Mapped[str] = mapped_column(Text)
    quality: Mapped[str] = mapped_column(String(16))
    reasons: Mapped[list[Any]]
    report: Mapped[dict[str, Any]]
    choice: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  #: of the fit: why this form
    created_at: Mapped[CreatedAt]
