"""Rules about a spec that need the model, the deployment, or several of its fields at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignez_core.errors import InvalidInput
from alignez_core.prompts import (
    PromptFormat,
    Side,
    characteristics_prompt,
    persona_prompt,
    preference_prompt,
)
from alignez_core.spec.config import DEFAULT_CHARACTERISTICS_TOKENS, FitConfig, check_judge
from alignez_core.spec.persona import FitSpec, GivenPair, Persona
from alignez_core.spec.samples import complete_spec, fit_query_count
from api.http.errors import ApiError
from api.services import Model, Services
from profiles.spec import uses_bank

#: Special tokens that a tokenizer adds to a text on its own, at most.
_ADDED_TOKENS = 8
_SIDES: tuple[Side, ...] = ("help", "harm")
#: In place of the bank, which a process without the model does not have. The splits of given queries depend only on
#: whether there is one.
_SOME_BANK = ("",)


def check_spec(services: Services, spec: Mapping[str, Any]) -> None:
    """Checks a complete spec (with what it takes over from the version before).

    Raises: ApiError: 422 naming the field: settings that the core's `FitConfig` refuses, an encoder or a judge that
        this deployment does not offer, more neighbours than fit queries, or a text over the model's context. A
        process without the model leaves the number of the bank's queries and the lengths to the worker.
    """
    model = services.model
    try:
        whole = complete_spec(spec, _SOME_BANK if model is None else model.query_bank)
    except InvalidInput as error:
        raise _refused(f"fit.{error.field}", str(error).removeprefix(f"{error.field}: ")) from error
    config = whole.config
    offered = ("lm", *services.settings.query_encoders)
    if config.query_encoder not in offered:
        raise _refused("fit.query_encoder", f"{config.query_encoder!r} is not one of {', '.join(offered)}")
    check_offered(services, "fit.judge", config.judge)
    if model is not None or not uses_bank(spec):
        _check_neighbors(whole)
    if model is not None:
        _check_lengths(model, whole)


def check_offered(services: Services, field: str, judge: str) -> None:
    """Raises: ApiError: 422, an unknown judge, or one that this deployment does not offer."""
    try:
        check_judge(judge)
    except InvalidInput as error:
        raise _refused(field, str(error).removeprefix("judge: ")) from error
    offered = services.offered_judges
    if judge not in offered:
        raise _refused(field, f"{judge!r} is not offered here; this deployment has {', '.join(offered)}")


def _refused(field: str, message: str) -> ApiError:
    return ApiError(422, "invalid_spec", f"{field}: {message}", param=field)


def _check_neighbors(whole: FitSpec) -> None:
    asked, count = whole.config.neighbors, fit_query_count(whole)
    if asked > count:
        raise _refused(
            "fit.neighbors",
            f"neighbors={asked} is more than the {count} fit queries (others are kept for choice and proof); lower it, "
            "give more queries, or let the model add some with own_queries",
        )


@dataclass(frozen=True)
class _Prompt:
    """A text that the fit will put to the model.

    Args:
        text: as the model reads it.
        room: new tokens that must fit behind it.
        parts: the caller's texts in it, by field; the longest one is to blame when it does not fit.
        what: for the message.
    """

    text: str
    room: int
    parts: Mapping[str, str | None]
    what: str


def _check_lengths(model: Model, whole: FitSpec) -> None:
    engine = model.engine
    context = engine.info.context_length
    for prompt in _prompts(engine.prompt_format, whole):
        # A token stands for at least one byte, so most texts need no tokenizer to be known as short enough.
        if len(prompt.text.encode()) + _ADDED_TOKENS + prompt.room <= context:
            continue
        tokens = len(engine.tokenize(prompt.text)) + prompt.room
        if tokens > context:
            field = max(prompt.parts, key=lambda name: len((prompt.parts[name] or "").encode()))
            raise ApiError(
                422,
                "context_length_exceeded",
                f"{field}: {prompt.what} has {tokens} tokens, the model's context is {context}",
                param=field,
            )


def _prompts(form: PromptFormat, whole: FitSpec) -> Iterator[_Prompt]:
    """Every kind of prompt that the fit is certain to make, as long as it is certain to be.

    What depends on texts that the model has yet to write (characteristics in a preference prompt) is not foreseen.
    """
    persona = whole.persona
    if not whole.queries and not whole.pairs:
        longest = max(whole.bank, key=len)
        yield from _asked(form, whole.config, longest, persona, {}, _persona_fields(persona))
    for i, query in enumerate(whole.queries):
        fields = _persona_fields(persona)
        if query.preferred is not None:
            fields["help"] = {f"queries.{i}.preferred": query.preferred}
        if query.dispreferred is not None:
            fields["harm"] = {f"queries.{i}.dispreferred": query.dispreferred}
        parts = {f"queries.{i}.text": query.text}
        yield from _asked(form, whole.config, query.text, query.persona(persona), parts, fields)
    for i, pair in enumerate(whole.pairs):
        yield from _pair_prompts(form, whole.config, pair, f"pairs.{i}", persona)


def _persona_fields(persona: Persona) -> dict[Side, dict[str, str | None]]:
    """The texts of the spec's own persona by side."""
    return {
        "help": {"persona.preferred": persona.preferred, "persona.description": persona.description},
        "harm": {"persona.dispreferred": persona.dispreferred},
    }


def _asked(
    form: PromptFormat,
    config: FitConfig,
    query: str,
    persona: Persona,
    parts: Mapping[str, str | None],
    fields: Mapping[Side, Mapping[str, str | None]],
) -> Iterator[_Prompt]:
    """A query under either side's system text with its answer, and what `alignez` asks beside."""
    for side in _SIDES:
        blamed = {**parts, **fields[side]}
        text = persona_prompt(form, query, persona, side)
        yield _Prompt(text, config.answer_tokens, blamed, "the query under the persona, with its answer,")
        if config.method == "alignez":
            room = config.characteristics_tokens or DEFAULT_CHARACTERISTICS_TOKENS
            text = characteristics_prompt(form, query, persona, side)
            yield _Prompt(text, room, blamed, "the prompt for characteristics, with its answer,")


def _pair_prompts(
    form: PromptFormat, config: FitConfig, pair: GivenPair, place: str, persona: Persona
) -> Iterator[_Prompt]:
    """The texts that a ground-truth pair is read in: its query under the persona, and either answer behind it."""
    asked: dict[str, str | None] = {f"{place}.query": pair.query}
    fields = _persona_fields(persona)
    yield from _asked(form, config, pair.query, persona, asked, fields)
    answers: dict[Side, tuple[str, str]] = {
        "help": (f"{place}.preferred", pair.preferred),
        "harm": (f"{place}.dispreferred", pair.dispreferred),
    }
    for side, (field, answer) in answers.items():
        blamed = {**asked, field: answer, **fields[side]}
        text = persona_prompt(form, pair.query, persona, side) + answer
        yield _Prompt(text, 1, blamed, "the query under the persona with its answer")
        if config.method == "alignez":
            text = preference_prompt(form, pair.query, f"read like this: {answer}", persona, side)
            yield _Prompt(text, 0, blamed, "the prompt that shows the answer")
