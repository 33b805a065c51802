"""Rules about a spec that need the model, or several of its fields at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from api.errors import ApiError
from api.services import Services
from profiles.spec import check_neighbors


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
    if services.model is not None:
        check_neighbors(spec, len(services.model.query_bank))
    _check_lengths(services, spec)


def _check_lengths(services: Services, spec: Mapping[str, Any]) -> None:
    """Texts over the context are refused here where the model is at hand; elsewhere the worker reports them."""
    if services.model is None:
        return
    engine = services.model.engine
    context = engine.info.context_length
    for field, text in _texts(spec):
        # A token stands for at least one byte, so most texts need no tokenizer to be known as short enough.
        if len(text.encode()) + 16 > context:
            tokens = len(engine.tokenize(engine.prompt_format.wrap(text)))
            if tokens >= context:
                raise ApiError(
                    422,
                    "context_length_exceeded",
                    f"{field}: has {tokens} tokens, the model's context is {context}",
                    param=field,
                )


def _texts(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for i, query in enumerate(spec["queries"]):
        yield f"queries.{i}.text", query["text"]
    for i, pair in enumerate(spec["pairs"]):
        yield f"pairs.{i}.query", pair["query"]
        for side in ("preferred", "dispreferred"):
            yield f"pairs.{i}.{side}", f"{pair['query']}\n{pair[side]}"
