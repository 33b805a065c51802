"""`POST /v1/chat/completions`, and the same as an end user."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.deps import CallerDep, GenerationRoute, ModelDep, ServicesDep
from api.generation.openai_format import CHAT_RESPONSES
from api.generation.personalise import Query, personal_of
from api.generation.protocol import ChatRequest, last_question
from api.generation.run import CHAT, Generation, Prepared, engine_requests
from api.generation.selection import full_name, select
from api.http.fields import EndUserPath
from api.services import Model, Services
from profiles.service import Caller

router = APIRouter(prefix="/v1", tags=["generation"], route_class=GenerationRoute)


@router.post("/chat/completions", summary="Answer a conversation", response_model=None, responses=CHAT_RESPONSES)
async def chat_completions(
    body: ChatRequest, request: Request, caller: CallerDep, model: ModelDep, services: ServicesDep
) -> Response:
    """OpenAI's chat completions, personalised.

    The profile comes from `model` (`base@profile`, `base@profile:alias`, `base@profile#3`), from `profile`, or from
    the assignment of `user`. The bare base model answers if there is none of them, or if the assigned profile has no
    default version. The reply and a stream's last chunk describe the applied personalisation under `alignez`. A
    profile's prefix precedes your own system message, and `usage` counts its tokens.

    Unknown and unsupported fields are refused by name (400 `unknown_parameter`, `unsupported_parameter`), unless their
    value means "off". A stream sends comments while it waits.
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
    """The same with the end user in the path: an OpenAI client needs only `base_url=…/v1/users/{user}`."""
    return await _answer(body, request, caller, model, services, user)


async def _answer(
    body: ChatRequest, request: Request, caller: Caller, model: Model, services: Services, user: str | None
) -> Response:
    services.check_choices(body.n)
    selection = select(body, model.name, caller, user)
    served = model.served
    served.prompts.check_length(sum(len(message.text) for message in body.messages), "messages")

    async def prepare() -> Prepared:
        personal = await personal_of(model.personaliser, caller, selection, Query(last_question(body.messages)))
        prompt, personal = await served.prompts.chat(caller.tenant_id, body.messages, personal)
        made = engine_requests(served, body, prompt, body.answer_tokens, body.alternatives, personal, chat=True)
        return made, [personal] * len(made)

    name = full_name(body.model, model.name)
    generation = Generation(served, CHAT, name, prepare, caller.tenant_id, request.state.started, "messages")
    return await generation.respond(request, stream=bool(body.stream), include_usage=body.include_usage)
