"""`POST /v1/compare`: one prompt and one seed for the base model and several profiles, in one batch."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from api.deps import CallerDep, GenerationRoute, ModelDep, ServicesDep
from api.generation.compare_schemas import CompareRequest, Comparison
from api.generation.compare_stream import compare_events, comparison
from api.generation.personalise import BARE, Query, personal_of
from api.generation.protocol import ChatMessage, SamplingFields, last_question
from api.generation.run import CHAT, Generation, Prepared, engine_requests
from api.generation.selection import Selection, bound
from api.http.errors import ApiError, own_body, problem_of
from api.http.sse import EventStream, event, watching

router = APIRouter(prefix="/v1", tags=["generation"], route_class=GenerationRoute)


@router.post(
    "/compare",
    summary="Base and profiles side by side",
    response_model=Comparison,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answers"}},
)
async def compare(
    body: CompareRequest, request: Request, caller: CallerDep, model: ModelDep, services: ServicesDep
) -> Response | Comparison:
    """All columns sample with the same seed, so they differ by their profiles only.

    With `stream: true` the reply is server-sent events: first `columns` (index and name of each), then `token`
    (`{"index", "name", "text"}`), a `column` whenever one ends, and `end`.
    """
    limit = services.settings.max_compare_profiles
    if len(body.profiles) > limit:
        raise ApiError(
            422, "too_many_profiles", f"{len(body.profiles)} profiles, the limit is {limit}", param="profiles"
        )
    messages = body.messages or [ChatMessage(role="user", content=body.prompt or "")]
    prompt_field = "prompt" if body.messages is None else "messages"
    served = model.served
    served.prompts.check_length(sum(len(message.text) for message in messages), prompt_field)
    sampling = SamplingFields(temperature=body.temperature, top_p=body.top_p, seed=body.seed, stop=body.stop)
    chosen = [
        bound(Selection(c.name, c.alias, c.version, c.strength, param=f"profiles.{i}"), caller)
        for i, c in enumerate(body.profiles)
    ]
    names = (["base"] if body.include_base else []) + [
        c.label or _shown(c.name, c.alias, c.version) for c in body.profiles
    ]

    async def prepare() -> Prepared:
        query = Query(last_question(messages))
        found = await asyncio.gather(
            *(personal_of(model.personaliser, caller, selection, query) for selection in chosen)
        )
        columns = ([BARE] if body.include_base else []) + list(found)
        rendered = await asyncio.gather(
            *(served.prompts.chat(caller.tenant_id, messages, personal) for personal in columns)
        )
        requests = [
            each
            for prompt, personal in rendered
            for each in engine_requests(served, sampling, prompt, body.max_tokens, None, personal, chat=True)
        ]
        return requests, [personal for _, personal in rendered]

    generation = Generation(served, CHAT, model.name, prepare, caller.tenant_id, request.state.started, prompt_field)
    if body.stream:
        request_id = request.state.request_id
        return EventStream(
            compare_events(generation, names, body.seed),
            on_gone=generation.close,
            on_error=lambda error: event(own_body(problem_of(error), request_id), name="error"),
            heartbeat_s=served.heartbeat_s,
        )
    async with watching(request.receive, generation.close):
        return await comparison(generation, names, body.seed)


def _shown(name: str, alias: str | None, version: int | None) -> str:
    if alias is not None:
        return f"{name}:{alias}"
    return name if version is None else f"{name}#{version}"
