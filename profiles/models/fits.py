"""What a fit leaves behind: queries, preference pairs, representations and directions.

Vector columns carry no dimension, because it differs from base model to base model. They are read and written in
binary by `profiles.vectors`; the ORM classes exist for the schema and for rows without vectors.
"""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import ForeignKey, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, deferred, mapped_column

from profiles.models.base import Base, PublicId, TenantId, state_column

#: Dimensions of `FitQueryRow.embedding_sketch`.
SKETCH_SIZE = 256


class QuerySource(StrEnum):
    GIVEN = "given"  #: by the caller
    BANK = "bank"  #: the shipped query bank
    INVENTED = "invented"  #: by the model itself
    PAIR = "pair"  #: the caller's ground-truth pair


class FitQueryRow(Base):
    """One query of a version, in its order, with the embedding that a request is compared with."""

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
    of its own. The version's own directions are fitted on the full numbers.

    The view `pair_representations` shows the same by query and layer, and takes rows in that form: the previous release
    reads and writes it. It goes when that release does.
    """

    __tablename__ = "query_representations"

    query_id: Mapped[UUID] = mapped_column(ForeignKey("fit_queries.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[TenantId]
    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id", ondelete="CASCADE"), index=True)
    layers: Mapped[list[int]] = mapped_column(ARRAY(Integer))  #: L, ascending
    help: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))
    harm: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))
    plain: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))


class DirectionRow(Base):
    """The version's own (not conditional) directions at one edited layer, (D,) float32 unit length each."""

    __tablename__ = "directions"

    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id", ondelete="CASCADE"), primary_key=True)
    layer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[TenantId]
    theta_help: Mapped[list[float] | None] = deferred(mapped_column(VECTOR()))
    theta_harm: Mapped[list[float] | None] = deferred(mapped_column(VECTOR()))
    theta: Mapped[list[float] | None] = deferred(mapped_column(VECTOR()))
    tau: Mapped[float | None]
