"""Base models, profiles, versions, and the aliases and assignments that select a version."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from profiles.models.base import Base, CreatedAt, PublicId, SerialId, TenantId, same_tenant, state_column


class BaseModelRow(Base):
    """A language model that a process of this deployment has loaded, identified by its fingerprint.

    Fingerprint, layer count and hidden size never change (a trigger refuses it).
    """

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
    seen_at: Mapped[CreatedAt]  #: last load by a process; new profiles use the latest model


class Profile(Base):
    """A named behaviour. Deletion sets `archived_at`, which releases the name and keeps the history."""

    __tablename__ = "profiles"
    __table_args__ = (
        Index("uq_profiles_live_name", "tenant_id", "name", unique=True, postgresql_where=text("archived_at IS NULL")),
        UniqueConstraint("tenant_id", "id"),
    )

    id: Mapped[PublicId]
    tenant_id: Mapped[TenantId]
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str | None] = mapped_column(Text)
    #: None until a worker claims the first job, if no model was registered at the profile's creation.
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
    """One fit of a profile. Of a `ready` version only the state may change, to `archived` (a trigger checks it)."""

    __tablename__ = "profile_versions"
    __table_args__ = (
        same_tenant("profile_id", "profiles"),
        same_tenant("parent_id", "profile_versions"),
        UniqueConstraint("profile_id", "number"),
        UniqueConstraint("id", "tenant_id"),
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
    profile_id: Mapped[UUID]
    number: Mapped[int]  #: 1, 2, 3 … within the profile
    state: Mapped[VersionState] = mapped_column(state_column(VersionState, "state"))
    parent_id: Mapped[UUID | None] = mapped_column(index=True)
    base_model_id: Mapped[UUID | None] = mapped_column(ForeignKey("base_models.id"))
    spec: Mapped[dict[str, Any]]  #: as requested: persona, queries, pairs, fit
    fit_config: Mapped[dict[str, Any] | None]  #: with all defaults
    method: Mapped[str | None] = mapped_column(String(16))  #: method of the fit, never "auto"
    layers: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))  #: edited layers, ascending; [] for a prefix alone
    #: Prepended to a conversation: {"system": text or null, "examples": [[user, assistant], …]}.
    prefix: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    steps: Mapped[int | None]  #: number of edited positions, from the last prompt token on; None: no end
    positions: Mapped[str] = mapped_column(String(16), default="answer", server_default="answer")
    #: Lookup among the fit queries at request time: none, a vote for a group, or rows for an edit of its own.
    lookup: Mapped[str] = mapped_column(String(16), default="none", server_default="none")
    embedding_layer: Mapped[int | None]
    diagnostics: Mapped[dict[str, Any] | None]
    quality: Mapped[str | None] = mapped_column(String(16))
    quality_reasons: Mapped[list[Any] | None]
    sha256: Mapped[str | None] = mapped_column(String(64))
    promote: Mapped[bool] = mapped_column(
        server_default=text("false")
    )  #: becomes the default when it is ready and good
    created_at: Mapped[CreatedAt]
    ready_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]


class ProfileAlias(Base):
    """One target of an alias. The rows of one (profile, alias) share its traffic by weight."""

    __tablename__ = "profile_aliases"
    __table_args__ = (
        same_tenant("profile_id", "profiles"),
        same_tenant("version_id", "profile_versions"),
        CheckConstraint("weight > 0", name="weight_positive"),
    )

    profile_id: Mapped[UUID] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)
    tenant_id: Mapped[TenantId]
    weight: Mapped[float] = mapped_column(Float)
    created_at: Mapped[CreatedAt]


class AliasMove(Base):
    """One entry of an alias's history: its targets and their time of effect.

    A rollback undoes the latest move that is not undone.
    """

    __tablename__ = "alias_moves"
    __table_args__ = (
        same_tenant("profile_id", "profiles"),
        same_tenant("key_id", "api_keys"),
        Index(None, "profile_id", "alias", "id"),
    )

    id: Mapped[SerialId]
    tenant_id: Mapped[TenantId]
    profile_id: Mapped[UUID]
    alias: Mapped[str] = mapped_column(String(64))
    targets: Mapped[dict[str, Any]]  #: version number (as text) → weight
    key_id: Mapped[UUID | None]
    created_at: Mapped[CreatedAt]
    undone_at: Mapped[datetime | None]


class Assignment(Base):
    """The profile of an end user; the default version without alias and version."""

    __tablename__ = "assignments"
    __table_args__ = (
        same_tenant("profile_id", "profiles"),
        same_tenant("version_id", "profile_versions"),
        CheckConstraint("alias IS NULL OR version_id IS NULL", name="alias_or_version"),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    end_user: Mapped[str] = mapped_column(String(200), primary_key=True)
    profile_id: Mapped[UUID] = mapped_column(index=True)
    alias: Mapped[str | None] = mapped_column(String(64))
    version_id: Mapped[UUID | None] = mapped_column(index=True)
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]
