"""`POST /v1/completions`, and the same as an end user."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from api.deps import CallerDep, GenerationRoute, ModelDep, ServicesDep
from api.generation.openai_format import COMPLETION_RESPONSES
from api.generation.personalise import Query, personal_of
from api.generation.protocol import CompletionRequest
from api.generation.run import TEXT, Generation, Prepared, engine_requests
from api.generation.selection import full_name, select
from api.http.errors import ApiError
from api.http.fields import EndUserPath
from api.services import Model, Services
from profiles.service import Caller

router = APIRouter(prefix="/v1", tags=["generation"], route_class=GenerationRoute)


@router.post("/completions", summary="Continue a prompt", response_model=None, responses=COMPLETION_RESPONSES)
async def create_completion(
    body: CompletionRequest, request: Request, caller: CallerDep, model: ModelDep, services: ServicesDep
) -> Response:
    """OpenAI's text completions. The prompt is used unchanged, without a chat template.

    The profile is chosen as for chat completions, and the prompt is the query of a sample-conditional lookup. A
    profile with a separate query encoder needs a text prompt for the lookup; for token ids its first edit is used. A
    profile's prefix precedes the prompt; a chat model supports prefixes in `/v1/chat/completions` only, else 400
    `prefix_needs_chat`. Unknown and unsupported fields are refused as for chat completions.
    """
    return await _answer(body, request, caller, model, services, None)


@router.post(
    "/users/{user}/completions",
    summary="Continue a prompt as an end user",
    response_model=None,
    responses=COMPLETION_RESPONSES,
)
async def user_completion(
    user: EndUserPath,
    body: CompletionRequest,
    request: Request,
    caller: CallerDep,
    model: ModelDep,
    services: ServicesDep,
) -> Response:
    """The same with the end user in the path."""
    return await _answer(body, request, caller, model, services, user)


async def _answer(
    body: CompletionRequest, request: Request, caller: Caller, model: Model, services: Services, user: str | None
) -> Response:
    services.check_choices(body.n)
    selection = select(body, model.name, caller, user)
    prompts = body.prompts
    if len(prompts) * (body.n or 1) > services.settings.max_prompts:
        raise ApiError(
            400,
            "too_many_prompts",
            f"{len(prompts)} prompts with n={body.n or 1} give {len(prompts) * (body.n or 1)} answers, the limit is "
            f"{services.settings.max_prompts}",
            param="prompt",
        )
    served = model.served
    for prompt in prompts:
        if isinstance(prompt, str):
            served.prompts.check_length(len(prompt), "prompt")

    async def prepare() -> Prepared:
        ids = [await served.prompts.text(caller.tenant_id, prompt) for prompt in prompts]
        queries = [
            Query(prompt if isinstance(prompt, str) else None, tokens)
            for prompt, tokens in zip(prompts, ids, strict=True)
        ]
        personal = await asyncio.gather(
            *(personal_of(model.personaliser, caller, selection, query) for query in queries)
        )
        requests, whose = [], []
        for asked, tokens, applied in zip(prompts, ids, personal, strict=True):
            prompt, whom = await served.prompts.prefixed(caller.tenant_id, asked, tokens, applied)
            made = engine_requests(served, body, prompt, body.max_tokens, body.logprobs, whom, chat=False)
            requests += made
            whose += [whom] * len(made)
        return requests, whose

    name = full_name(body.model, model.name)
    generation = Generation(
        served, TEXT, name, prepare, caller.tenant_id, request.state.started, "prompt", len(prompts)
    )
    return await generation.respond(request, stream=bool(body.stream), include_usage=body.include_usage)
