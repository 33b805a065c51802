"""A version as its owner sees it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field

from api.http.fields import Row
from profiles.fitting.content import PAIR_KINDS
from profiles.models import FitQueryRow, ProfileVersion


class VersionSummary(Row):
    """A version in a list. `quality` is "weak" when the held-out proof does not show that it works; `quality_reasons`
    say why."""

    id: UUID
    number: int
    state: Literal["pending", "ready", "failed", "archived"]
    quality: Literal["good", "weak"] | None
    quality_reasons: Annotated[list[str], BeforeValidator(lambda reasons: reasons or [])]
    sha256: str | None
    method: str | None = Field(description="that made it; null until it is ready")
    layers: list[int] | None = Field(description="the edited layers; none for a prefix alone")
    created_at: datetime
    ready_at: datetime | None
    archived_at: datetime | None


class Prefix(BaseModel):
    """Text that opens the system turn, before the caller's own, and examples that follow it."""

    system: str | None
    examples: list[tuple[str, str]]


class VersionRead(VersionSummary):
    """A version with its spec, settings and proof."""

    prefix: Prefix | None = Field(description="text before every conversation; null: none")
    lookup: Literal["none", "groups", "neighbors"] = Field(
        description="lookup among the fit queries: none, the request's group, or rows for an edit of its own"
    )
    report: str | None = Field(description="where the proof is, once there is one")
    spec: dict[str, Any] = Field(description="as asked for")
    fit_config: dict[str, Any] | None = Field(description="as resolved, every default filled in")
    diagnostics: dict[str, Any] | None
    base_model: str | None
    job_id: UUID | None

    @classmethod
    def in_full(cls, row: ProfileVersion, base_model: str | None, job_id: UUID | None) -> Self:
        """The row as a reply, all of it."""
        return cls(
            **VersionSummary.model_validate(row).model_dump(),
            prefix=None if row.prefix is None else Prefix(**row.prefix),
            lookup=row.lookup,
            report=None if row.quality is None else f"/v1/profiles/{row.profile_id}/versions/{row.number}/report",
            spec=row.spec,
            fit_config=row.fit_config,
            diagnostics=row.diagnostics,
            base_model=base_model,
            job_id=job_id,
        )


class PairRead(BaseModel):
    """A fit query with its texts; null if they were not generated (yet)."""

    query_id: UUID
    position: int
    query: str
    source: str
    preferred: str | None = Field(description="the query's own phrase")
    dispreferred: str | None
    help_characteristics: str | None
    harm_characteristics: str | None
    help_response: str | None
    harm_response: str | None
    dropped: str | None = Field(description="reason if the pair is unused")

    @classmethod
    def of(cls, query: FitQueryRow) -> Self:
        """The row and its pair as a reply."""
        return cls(
            query_id=query.id,
            position=query.position,
            query=query.text,
            source=query.source.value,
            preferred=query.preferred,
            dispreferred=query.dispreferred,
            **{name: getattr(query.pair, name, None) for name in (*PAIR_KINDS, "dropped")},
        )
