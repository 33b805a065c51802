"""Rules about a spec that need the model, or several of its fields at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api.errors import ApiError
from api.services import Model, Services
from profiles.spec import check_neighbors, uses_bank

if TYPE_CHECKING:
    from alignez_core.fit_config import FitQuery
    from alignez_core.prompts import Persona

#: Special tokens that a tokenizer adds to a text on its own, at most.
_ADDED_TOKENS = 8


def check_spec(services: Services, spec: Mapping[str, Any]) -> None:
    """Checks a complete spec (with what it takes over from the version before).

    Raises: ApiError: 422 naming the field: a representation that the method cannot use, an encoder that
        this deployment does not offer, or a text over the model's context, where this process holds the model.
        InvalidSpec: K is more than the query bank and the model's own queries, likewise.
    """
    fit = spec["fit"]
    representation = fit.get("representation", "prompt")
    if fit.get("method", "transport") == "transport" and representation != "prompt":
        raise ApiError(
            422,
            "invalid_spec",
            f"fit.representation: {representation!r} does not go with method 'transport'; use 'prompt', or method "
            f"'alignez'",
            param="fit.representation",
        )
    offered = ("lm", *services.settings.query_encoders)
    encoder = fit.get("query_encoder", "lm")
    if encoder not in offered:
        raise ApiError(
            422,
            "invalid_spec",
            f"fit.query_encoder: {encoder!r} is not one of {', '.join(offered)}",
            param="fit.query_encoder",
        )
    if services.model is not None:  # elsewhere the worker reports the rest
        check_neighbors(spec, len(services.model.query_bank))
        _check_lengths(services.model, spec)


@dataclass(frozen=True)
class _Prompt:
    """A text that the fit will put to the model.

    Args:
        content: the text, or with `wrapped` a user turn of it.
        room: new tokens that must fit behind it.
        parts: the caller's texts in it, by field; the longest one is to blame when it does not fit.
        what: for the message.
    """

    content: str
    wrapped: bool
    room: int
    parts: Mapping[str, str | None]
    what: str


def _check_lengths(model: Model, spec: Mapping[str, Any]) -> None:
    engine = model.engine
    context = engine.info.context_length
    wrapping = len(engine.prompt_format.wrap("").encode())
    for prompt in _prompts(model, spec):
        # A token stands for at least one byte, so most texts need no tokenizer to be known as short enough.
        size = len(prompt.content.encode()) + (wrapping if prompt.wrapped else 0)
        if size + _ADDED_TOKENS + prompt.room <= context:
            continue
        text = engine.prompt_format.wrap(prompt.content) if prompt.wrapped else prompt.content
        tokens = len(engine.tokenize(text)) + prompt.room
        if tokens > context:
            field = max(prompt.parts, key=lambda name: len((prompt.parts[name] or "").encode()))
            raise ApiError(
                422,
                "context_length_exceeded",
                f"{field}: {prompt.what} has {tokens} tokens, the model's context is {context}",
                param=field,
            )


def _prompts(model: Model, spec: Mapping[str, Any]) -> Iterator[_Prompt]:
    """Every kind of prompt that the fit is certain to make, as long as it is certain to be.

    What depends on texts that the model has yet to write (characteristics in a preference prompt) is not foreseen.
    """
    from alignez_core.fit_config import FitConfig, FitQuery
    from alignez_core.prompts import Persona

    persona = Persona(**{name: text for name, text in (spec["persona"] or {}).items() if text is not None})
    room = spec["fit"].get("characteristics_tokens", FitConfig.characteristics_tokens)
    if uses_bank(spec):
        yield from _characteristics(FitQuery(max(model.query_bank, key=len)), None, persona, room)
    for i, given in enumerate(spec["queries"]):
        query = FitQuery(given["text"], given["preferred"], given["dispreferred"])
        yield _Prompt(query.text, True, 1, {f"queries.{i}.text": query.text}, "the query")
        yield from _characteristics(query, f"queries.{i}", persona, room)
    for i, pair in enumerate(spec["pairs"]):
        yield from _pair_prompts(pair, f"pairs.{i}", persona)


def _characteristics(query: FitQuery, place: str | None, default: Persona, room: int) -> Iterator[_Prompt]:
    """The prompts for what an answer of either side should be like; `place` None is a query of the bank's."""
    from alignez_core.prompts import characteristics_prompt

    persona = query.persona(default)
    parts = {} if place is None else {f"{place}.text": query.text}
    help_ = {
        **parts,
        f"{place}.preferred" if query.preferred else "persona.preferred": persona.preferred,
        "persona.description": persona.description,
    }
    harm = {**parts, f"{place}.dispreferred" if query.dispreferred else "persona.dispreferred": persona.dispreferred}
    what = "the prompt for characteristics, with its answer,"
    yield _Prompt(characteristics_prompt(query.text, persona, "help"), False, room, help_, what)
    yield _Prompt(characteristics_prompt(query.text, persona, "harm"), False, room, harm, what)


def _pair_prompts(pair: Mapping[str, str], place: str, persona: Persona) -> Iterator[_Prompt]:
    """The texts that a ground-truth pair is read in: after its query, and as an example of the behaviour."""
    from alignez_core.prompts import preference_content
    from alignez_core.self_preference import given_characteristics

    query, preferred, dispreferred = pair["query"], pair["preferred"], pair["dispreferred"]
    asked = {f"{place}.query": query}
    help_, harm = {**asked, f"{place}.preferred": preferred}, {**asked, f"{place}.dispreferred": dispreferred}
    yield _Prompt(query, True, 1, asked, "the query")
    yield _Prompt(f"{query}\n{preferred}", True, 1, help_, "the query with its answer")
    yield _Prompt(f"{query}\n{dispreferred}", True, 1, harm, "the query with its answer")
    shown = given_characteristics((preferred, dispreferred))
    with_persona = {**help_, "persona.preferred": persona.preferred, "persona.description": persona.description}
    what = "the prompt that shows the answer"
    yield _Prompt(preference_content(query, shown.help, persona, "help"), True, 0, with_persona, what)
    against = {**harm, "persona.dispreferred": persona.dispreferred}
    yield _Prompt(preference_content(query, shown.harm, persona, "harm"), True, 0, against, what)
