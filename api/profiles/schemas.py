"""Bodies that describe a behaviour, and profiles as callers see them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from alignez_core.spec.limits import ContrastForm, EditRule, LayerRule, MethodName, Representation
from api.http.fields import AnswerText, Body, Description, Name, Phrase, QueryText, ShortText, field_error, within
from api.jobs.schemas import JobRead
from api.profiles.version_schemas import VersionSummary
from profiles.models import Profile
from profiles.spec import QUERIES_LIMIT

_EXAMPLE: dict[str, Any] = {
    "name": "cheerful",
    "persona": {"preferred": "cheerful and warm", "dispreferred": "gloomy and cold"},
    "fit": {"method": "auto"},
}


class PersonaBody(Body):
    """The wanted behaviour and its opposite, as phrases that complete "You are a … assistant"."""

    description: Description | None = Field(None, description="free text; joins the preferred side's prompts")
    preferred: Phrase | None = Field(None, description='default "helpful"', examples=["cheerful and warm"])
    dispreferred: Phrase | None = Field(
        None, description='default "malicious and useless"', examples=["gloomy and cold"]
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.description or self.preferred or self.dispreferred):
            raise field_error("preferred", "give preferred, dispreferred or description")
        return self


class QueryBody(Body):
    """A query to fit on; with phrases of its own, the behaviour depends on the context."""

    text: QueryText
    preferred: Phrase | None = None
    dispreferred: Phrase | None = None


class PairBody(Body):
    """A ground-truth pair: both answers to one query."""

    query: QueryText
    preferred: AnswerText
    dispreferred: AnswerText


LayerIndex = Annotated[int, within("layer_index")]


class FitBody(Body):
    """Settings of the fit: the core's `FitConfig` with its defaults and ranges.

    Omitted settings take their default; a later version inherits them from the previous one. Null restores the default,
    except for `steps`. Settings of one method are refused with another one.
    """

    method: MethodName | None = Field(
        None, description="`auto` measures several forms of `distill` beside the persona as a prompt and takes the best"
    )
    contrast: Annotated[float, within("contrast")] | None = Field(
        None, description="λ of `distill`, how far beyond the persona's prompt; chosen by measurement when left out"
    )
    contrast_form: ContrastForm | None = None
    rank: Annotated[int, within("rank")] | None = Field(None, description="of `distill`, at each layer")
    ridge: Annotated[float, within("ridge")] | None = Field(None, description="of `distill`: penalty of its regression")
    layers: (
        Annotated[int, within("layers")]
        | Literal["all"]
        | Annotated[list[LayerIndex], Field(min_length=1, max_length=10_000)]
        | None
    ) = Field(None, description="a number of layers, `all`, or indices from 0")
    layer_rule: LayerRule | None = Field(None, description="of `alignez`, when `layers` is a number")
    representation: Representation | None = Field(None, description="of `alignez`: where it reads")
    edit_rule: EditRule | None = Field(None, description="of `alignez`")
    strength: Annotated[float, within("strength")] | None = Field(None, description="dose; 1 is the method itself")
    steps: Annotated[int, within("steps")] | Literal["default"] | None = Field(
        "default", description="edited positions from the last prompt token on; null: unlimited"
    )
    conditional: bool | None = Field(None, description="an edit per request, by its nearest fit queries")
    neighbors: Annotated[int, within("neighbors")] | None = Field(
        None, description="K, at most the number of queries that are fitted on; 10, or all of fewer"
    )
    query_encoder: ShortText | None = None
    judge: ShortText | None = Field(
        None, description="judge of the comparisons: `self`, `nano`, `openai`, `model:PATH` or `reward:PATH`"
    )
    judge_fallback: bool | None = Field(
        None, description="go on with `self` when the judge cannot be reached; else the job ends"
    )
    prompt_margin: Annotated[float, within("prompt_margin")] | None = Field(
        None, description="minimum net win over the best edit at which `auto` chooses the prompt"
    )
    answers: Annotated[int, within("answers")] | None = Field(None, description="fit queries that the model answers")
    tune_queries: Annotated[int, within("tune_queries")] | None = Field(None, description="for the choice")
    held_out_queries: Annotated[int, within("held_out_queries")] | None = Field(None, description="for the proof")
    answer_tokens: Annotated[int, within("answer_tokens")] | None = None
    characteristics_tokens: Annotated[int, within("characteristics_tokens")] | None = Field(
        None, description="of `alignez`"
    )
    own_queries: Annotated[int, within("own_queries")] | None = Field(
        None, description="queries that the model invents beside the given ones"
    )
    temperature: Annotated[float, within("temperature")] | None = None
    seed: Annotated[int, within("seed")] | None = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, also those given as null (see `normal_spec`)."""
        return self.model_dump(exclude_unset=True)


def _as_object(query: object) -> object:
    """A plain string as a query without phrases of its own."""
    if isinstance(query, str):
        return {"text": query}
    if not isinstance(query, dict):
        raise ValueError("must be text or an object")
    return query


_Query = Annotated[QueryBody, BeforeValidator(_as_object, json_schema_input_type=QueryText | QueryBody)]
Queries = Annotated[list[_Query], Field(max_length=QUERIES_LIMIT)]
Pairs = Annotated[list[PairBody], Field(max_length=QUERIES_LIMIT)]


class SpecBody(Body):
    """Persona, queries, pairs and fit: what a version is made from."""

    persona: PersonaBody | None = None
    queries: Queries | None = Field(None, description="to fit on; without any, the shipped query bank")
    pairs: Pairs | None = None
    fit: FitBody | None = None

    def to_spec(self) -> dict[str, Any]:
        """The spec as `request_fit` takes it; a part that was left out is None or missing."""
        spec = self.model_dump(include={"persona", "queries", "pairs"})
        return spec if self.fit is None else {**spec, "fit": self.fit.given()}


class ProfileCreate(SpecBody):
    """A new profile and its first fit."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    description: Description | None = None
    base_model: ShortText | None = Field(None, description="by name; the served one when left out")

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.persona is None and not self.queries and not self.pairs:
            raise field_error("persona", "give a persona, queries or pairs")
        return self


class ProfileUpdate(Body):
    """New name or description; an empty description clears it."""

    name: Name | None = None
    description: Description | None = None


class ProfileRead(BaseModel):
    """A profile, and what its aliases point to (version number → share of the traffic)."""

    id: UUID
    name: str
    description: str | None
    base_model: str | None
    aliases: dict[str, dict[str, float]]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Profile, base_model: str | None, aliases: Mapping[str, Mapping[int, float]]) -> Self:
        """The row as a reply."""
        return cls(
            id=row.id,
            name=row.name,
            description=row.description,
            base_model=base_model,
            aliases={alias: {str(n): share for n, share in targets.items()} for alias, targets in aliases.items()},
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class FitAccepted(BaseModel):
    """Profile, version and job of a request for a fit; the job tells when the version is ready."""

    profile: ProfileRead
    version: VersionSummary
    job: JobRead
