"""Base models, profiles, their versions, and the pointers that say which version is in use."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from profiles.models.base import Base, CreatedAt, PublicId, SerialId, TenantId, state_column


class BaseModelRow(Base):
    """A language model that a process of this deployment has loaded. Identity is the fingerprint, not the name."""

    __tablename__ = "base_models"

    id: Mapped[PublicId]
    name: Mapped[str] = mapped_column(String(200), index=True)
    source: Mapped[str] = mapped_column(Text)
    revision: Mapped[str | None] = mapped_column(String(100))
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    n_layers: Mapped[int]
    hidden_size: Mapped[int]
    context_length: Mapped[int]
    prompt_format: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[CreatedAt]
    seen_at: Mapped[CreatedAt]  #: when a process last loaded it; the latest is the default of new profiles


class Profile(Base):
    """A named behaviour. Deleting sets `archived_at`, which frees the name and keeps the history."""

    __tablename__ = "profiles"
    __table_args__ = (
        Index("uq_profiles_live_name", "tenant_id", "name", unique=True, postgresql_where=text("archived_at IS NULL")),
        Index(None, "tenant_id", "id"),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str | None] = mapped_column(Text)
    #: None until a worker takes the first job, when no process had registered a model at creation.
    base_model_id: Mapped[UUID | None] = mapped_column(ForeignKey("base_models.id"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]
    archived_at: Mapped[datetime | None]


class VersionState(StrEnum):
    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"
    ARCHIVED = "archived"


class ProfileVersion(Base):
    """One fit of a profile. Once `ready` nothing but its state can change, and only to `archived` (by trigger)."""

    __tablename__ = "profile_versions"
    __table_args__ = (
        UniqueConstraint("profile_id", "number"),
        CheckConstraint("number > 0", name="number_positive"),
        CheckConstraint("quality IN ('good', 'weak')", name="quality_known"),
        CheckConstraint(
            "state <> 'ready' OR (sha256 IS NOT NULL AND quality IS NOT NULL AND ready_at IS NOT NULL"
            " AND base_model_id IS NOT NULL AND layers IS NOT NULL AND method IS NOT NULL)",
            name="ready_is_complete",
        ),
        CheckConstraint("positions IN ('answer', 'all')", name="positions_known"),
        CheckConstraint("lookup IN ('none', 'groups', 'neighbors')", name="lookup_known"),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    profile_id: Mapped[UUID] = mapped_column(ForeignKey("profiles.id"))
    number: Mapped[int]  #: 1, 2, 3 … within the profile
    state: Mapped[VersionState] = mapped_column(state_column(VersionState, "state"))
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("profile_versions.id"))
    base_model_id: Mapped[UUID | None] = mapped_column(ForeignKey("base_models.id"))
    spec: Mapped[dict[str, Any]]  #: as asked for: persona, queries, pairs, fit
    fit_config: Mapped[dict[str, Any] | None]  #: as resolved, defaults filled in
    method: Mapped[str | None] = mapped_column(String(16))  #: that made it; "auto" is resolved
    layers: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))  #: edited layers, ascending; [] for a prefix alone
    #: Put before a conversation: {"system": text or null, "examples": [[user, assistant], …]}.
    prefix: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    steps: Mapped[int | None]  #: edited positions from the last prompt token on; None: no end
    positions: Mapped[str] = mapped_column(String(16), default="answer", server_default="answer")
    #: What a request looks up among the fit queries: nothing, its group by vote, or rows to fit its own edit on.
    lookup: Mapped[str] = mapped_column(String(16), default="none", server_default="none")
    embedding_layer: Mapped[int | None]
    diagnostics: Mapped[dict[str, Any] | None]
    quality: Mapped[str | None] = mapped_column(String(16))
    quality_reasons: Mapped[list[Any] | None]
    sha256: Mapped[str | None] = mapped_column(String(64))
    promote: Mapped[bool] = mapped_column(server_default=text("false"))  #: make it the default when it is ready
    created_at: Mapped[CreatedAt]
    ready_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]


class ProfileAlias(Base):
    """One target of an alias. Rows of one (profile, alias) share its traffic by weight."""

    __tablename__ = "profile_aliases"
    __table_args__ = (CheckConstraint("weight > 0", name="weight_positive"),)

    profile_id: Mapped[UUID] = mapped_column(ForeignKey("profiles.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version_id: Mapped[UUID] = mapped_column(ForeignKey("profile_versions.id"), primary_key=True)
    tenant_id: Mapped[TenantId]
    weight: Mapped[float] = mapped_column(Float)
    created_at: Mapped[CreatedAt]


class AliasMove(Base):
    """History of an alias: what it pointed to from when on. Rolling back undoes the latest move that stands."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index(None, "profile_id", "alias", "id"),)

    id: Mapped[SerialId]
    tenant_id: Mapped[TenantId]
    profile_id: Mapped[UUID] = mapped_column(ForeignKey("profiles.id"))
    alias: Mapped[str] = mapped_column(String(64))
    targets: Mapped[dict[str, Any]]  #: version number (as text) → weight
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[CreatedAt]
    undone_at: Mapped[datetime | None]


class Assignment(Base):
    """Which profile an end user gets; with neither alias nor version, the profile's default."""

    __tablename__ = "assignments"
    __table_args__ = (CheckConstraint("alias IS NULL OR version_id IS NULL", name="alias_or_version"),)

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    end_user: Mapped[str] = mapped_column(String(200), primary_key=True)
    profile_id: Mapped[UUID] = mapped_column(ForeignKey("profiles.id"), index=True)
    alias: Mapped[str | None] = mapped_column(String(64))
    version_id: Mapped[UUID | None] = mapped_column(ForeignKey("profile_versions.id"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]
