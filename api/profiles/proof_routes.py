"""`…/versions/{n}/evaluate` and `…/report`: proving a version again, and what a proof found."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from alignez_core.proof.page import render, style
from api.deps import CallerDep, KeyedRoute, ServicesDep, UowDep
from api.http.fields import Body, NumberPath, ProfilePath, ShortText, Text, within
from api.http.idempotency import IdempotencyHeader, once
from api.http.security import content_policy, inline_source
from api.jobs.schemas import JobRead
from api.profiles.checks import check_offered
from api.profiles.routes import JOB_ACCEPTED, job_location
from profiles.fitting.evaluations import latest_evaluation, request_evaluation
from profiles.models import Evaluation
from profiles.service import get_profile
from telemetry.tracing import Origin

router = APIRouter(prefix="/v1/profiles/{profile}/versions/{number}", tags=["versions"], route_class=KeyedRoute)


@cache
def _page_headers() -> dict[str, str]:
    """The page needs nothing but its one stylesheet; a judge's or a model's text cannot make it load anything."""
    return {"content-security-policy": content_policy({"style-src": inline_source(style())}), "vary": "accept"}


class EvaluationCreate(Body):
    """Settings of an evaluation; what is left out is as in the version's fit."""

    judge: ShortText | None = Field(None, description="`self`, `nano`, `openai`, `model:PATH` or `reward:PATH`")
    judge_fallback: bool | None = Field(None, description="go on with `self` when the judge cannot be reached")
    held_out_queries: Annotated[int, within("held_out_queries")] | None = None
    answer_tokens: Annotated[int, within("answer_tokens")] | None = None
    seed: Annotated[int, within("seed")] | None = None


class EvaluationAccepted(BaseModel):
    """The job that evaluates; `…/report` has its result when it has succeeded."""

    job: JobRead


class ReportRead(BaseModel):
    """One proof: what was measured on held-out queries, and the verdict."""

    profile: str
    version: int
    judge: str
    quality: Literal["good", "weak"]
    reasons: list[str]
    report: dict[str, Any] = Field(description="its keys are in docs/effect.md")
    choice: dict[str, Any] | None = Field(description="reason for the chosen form; null for a later evaluation")
    job_id: UUID | None
    created_at: datetime

    @classmethod
    def of(cls, row: Evaluation, profile: str, number: int) -> Self:
        """The row as a reply."""
        return cls(
            profile=profile,
            version=number,
            judge=row.judge,
            quality=row.quality,
            reasons=[str(reason) for reason in row.reasons],
            report=row.report,
            choice=row.choice,
            job_id=row.job_id,
            created_at=row.created_at,
        )


@router.post(
    "/evaluate",
    status_code=202,
    summary="Evaluate a version",
    response_model=EvaluationAccepted,
    responses=JOB_ACCEPTED,
)
def evaluate(
    profile: ProfilePath,
    number: NumberPath,
    body: EvaluationCreate,
    request: Request,
    caller: CallerDep,
    uow: UowDep,
    services: ServicesDep,
    idempotency_key: IdempotencyHeader = None,
) -> JSONResponse:
    """Queues the proof of a ready version again, with another judge, seed or number of held-out queries. The version
    and its quality stay as they are."""

    def make() -> EvaluationAccepted:
        if body.judge is not None:
            check_offered(services, "judge", body.judge)
        job = request_evaluation(
            uow,
            caller,
            profile,
            number,
            body.model_dump(exclude_none=True),
            max_queued_jobs=services.database.max_queued_jobs,
            origin=Origin.here(request.state.request_id),
        )
        return EvaluationAccepted(job=JobRead.of(job, number))

    return once(uow, caller, idempotency_key, request, body, 202, make, location=job_location)


@router.get(
    "/report",
    summary="Show a version's proof",
    response_model=ReportRead,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The latest proof"}},
)
def report(
    profile: ProfilePath,
    number: NumberPath,
    caller: CallerDep,
    uow: UowDep,
    judge: Annotated[Text | None, Query(max_length=200, description="the latest one by this judge")] = None,
    format: Annotated[Literal["json", "html"] | None, Query(description="wins over the Accept header")] = None,
    accept: Annotated[str | None, Header(max_length=1000, include_in_schema=False)] = None,
) -> Response:
    """The latest proof, the fit's own or an evaluation's: JSON, or with `Accept: text/html` or `?format=html` a page
    with pictures."""
    name = get_profile(uow, caller, profile).name
    found = ReportRead.of(latest_evaluation(uow, caller, profile, number, judge), name, number)
    if format == "html" or (format is None and "text/html" in (accept or "")):
        content = {**found.report, "quality": found.quality, "reasons": found.reasons}
        return HTMLResponse(render(content, found.choice, f"{name}, version {number}"), headers=_page_headers())
    return JSONResponse(found.model_dump(mode="json"), headers={"vary": "accept"})
