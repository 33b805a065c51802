"""`POST /v1/chat/completions`, and the same as an end user."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.deps import CallerDep, ModelDep, ServicesDep
from api.generation.openai_format import CHAT_RESPONSES
from api.generation.personalise import Query, personal_of
from api.generation.protocol import ChatRequest
from api.generation.run import CHAT, Generation, render_chat, rows
from api.generation.selection import select
from api.http.fields import EndUserPath
from api.services import Model, Services
from profiles.service import Caller

router = APIRouter(prefix="/v1", tags=["generation"])


@router.post("/chat/completions", summary="Answer a conversation", response_model=None, responses=CHAT_RESPONSES)
async def chat_completions(
    body: ChatRequest, request: Request, caller: CallerDep, model: ModelDep, services: ServicesDep
) -> Response:
    """OpenAI's chat completions, personalised.

    The profile comes from `model` (`base@profile`, `base@profile:alias`, `base@profile#3`), from `profile`, or from
    what is assigned to `user`; with none of them the bare base model answers, and likewise where an assigned profile
    has no default version. The reply, and a stream's last chunk, say under `alignez` what was applied. A profile's
    prefix stands before your own system message, and `usage` counts its tokens.
    """
    return await _answer(body, request, caller, model, services, None)


@router.post(
    "/users/{user}/chat/completions",
    summary="Answer a conversation as an end user",
    response_model=None,
    responses=CHAT_RESPONSES,
)
async def user_chat_completions(
    user: EndUserPath, body: ChatRequest, request: Request, caller: CallerDep, model: ModelDep, services: ServicesDep
) -> Response:
    """The same with the end user in the path: an OpenAI client needs nothing but `base_url=…/v1/users/{user}`."""
    return await _answer(body, request, caller, model, services, user)


async def _answer(
    body: ChatRequest, request: Request, caller: Caller, model: Model, services: Services, user: str | None
) -> Response:
    services.check_choices(body.n)
    selection = select(body, model.name, user)
    personal = await personal_of(model.personaliser, caller, selection, Query(body.query or ""))
    prompt, personal = await render_chat(model.engine, body, personal)
    requests = rows(model.served, body, prompt, body.answer_tokens, body.alternatives, personal, chat=True)
    whose = [personal] * len(requests)
    generation = Generation(model.served, CHAT, body.model, requests, whose, caller.tenant_id, request.state.started)
    return await generation.respond(request, stream=bool(body.stream), include_usage=body.include_usage)
