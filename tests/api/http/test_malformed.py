"""Of a union the branch that the value is most like is reported, with its own place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from api.generation.compare_schemas import CompareRequest
from api.generation.protocol import ChatRequest, CompletionRequest
from api.http.malformed import findings
from api.profiles.alias_schemas import AliasTarget
from api.profiles.schemas import SpecBody
from tests.api.conftest import Tenant


def said(tenant: Tenant, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """Field and message of the refusal of a body."""
    reply = tenant.post(path, json=body)
    error = reply.json()["error"]
    assert reply.status_code in (400, 422), reply.text
    assert error["details"]["field"] == error.get("param", error["details"]["field"])
    return error["details"]["field"], error["message"].partition(": ")[2]


def chat(content: object = "x", **more: Any) -> dict[str, Any]:
    return {
        "model": "fake",
        "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": content}],
        **more,
    }


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (chat([IMAGE]), "messages.1.content.0.type", "'text'"),
        (chat([{"type": "text", "text": "x"}, IMAGE]), "messages.1.content.1.type", "'image_url'"),
        (chat([{"type": "text", "text": "x", "prefx": "y"}]), "messages.1.content.0.prefx", "no such parameter"),
        (chat([{"type": "text"}]), "messages.1.content.0.text", "required"),
        (chat([{"type": "text", "text": 5}]), "messages.1.content.0.text", "valid string"),
        (chat([]), "messages.1.content", "at least 1 item"),
        (chat("a\x00"), "messages.1.content", "NUL"),
        (chat(5), "messages.1.content", "valid string or a valid list"),
        (chat(stop=["x"] * 17), "stop", "at most 16 items"),
        (chat(stop=["x", ""]), "stop.1", "at least 1 character"),
        (chat(stop=["x", 5]), "stop.1", "valid string"),
        (chat(stop=""), "stop", "at least 1 character"),
        (chat(stop="x" * 257), "stop", "at most 256 characters"),
        (chat(stop=5), "stop", "valid string or a valid list"),
        (chat(profile={"name": "p", "alias": "a", "version": 0}), "profile.version", "greater than or equal to 1"),
        (chat(temperature="hot"), "temperature", "valid number"),
    ],
)
def test_chat_bodies(tenant: Tenant, body: dict[str, Any], field: str, message: str) -> None:
    named, why = said(tenant, "/v1/chat/completions", body)
    assert named == field
    assert message in why


@pytest.mark.parametrize(
    ("prompt", "field", "message"),
    [
        ("", "prompt", "at least 1 character"),
        ([], "prompt", "at least 1 item"),
        (["x", ""], "prompt.1", "at least 1 character"),
        ([1, -5], "prompt.1", "greater than or equal to 0"),
        ([[1, 2], []], "prompt.1", "at least 1 item"),
        ([[1], [-2]], "prompt.1.0", "greater than or equal to 0"),
        ([1, "a"], "prompt.1", "valid integer"),
        ([[1, "a"]], "prompt.0.1", "valid integer"),
        ([["a"]], "prompt.0.0", "valid integer"),
        ([[1], 5], "prompt.1", "valid list"),
        (["a", 1], "prompt.1", "valid string"),
        ({"text": "x"}, "prompt", "valid string or a valid list"),
    ],
)
def test_prompts(tenant: Tenant, prompt: object, field: str, message: str) -> None:
    named, why = said(tenant, "/v1/completions", {"model": "fake", "prompt": prompt})
    assert named == field
    assert message in why


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"queries": ["a", {"text": "x", "preferred": "y" * 201}]}, "queries.1.preferred", "at most 200 characters"),
        ({"queries": ["a", {"txt": "x"}]}, "queries.1.txt", "did you mean 'text'?"),
        ({"queries": ["a", 5]}, "queries.1", "text or an object"),
        ({"queries": [""]}, "queries.0", "at least 1 character"),
        ({"fit": {"layers": []}}, "fit.layers", "at least 1 item"),
        ({"fit": {"layers": "most"}}, "fit.layers", "'all'"),
        ({"fit": {"layers": 0}}, "fit.layers", "greater than or equal to 1"),
        ({"fit": {"layers": [0, -1]}}, "fit.layers.1", "greater than or equal to 0"),
        ({"fit": {"rank": True}}, "fit.rank", "must not be true or false"),
        ({"fit": {"steps": 0}}, "fit.steps", "greater than or equal to 1"),
        ({"persona": {}}, "persona.preferred", "give preferred"),
        ({}, "persona", "give a persona"),
    ],
)
def test_specs(tenant: Tenant, body: dict[str, Any], field: str, message: str) -> None:
    named, why = said(tenant, "/v1/profiles", {"name": "p", **body})
    assert named == field
    assert message in why


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    legs: int


class Home(BaseModel):
    pets: list[Cat | Dog | str]
    tagged: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []
    rooms: dict[str, int | list[int | None]] = {}


@pytest.mark.parametrize(
    ("home", "found"),
    [
        ({"pets": [{"kind": "cat", "lives": 10}]}, ["pets.0.lives"]),
        ({"pets": [{"kind": "dog", "legs": "x"}]}, ["pets.0.legs"]),
        ({"pets": ["x", {"kind": "dog", "legs": None}, 5]}, ["pets.1.legs", "pets.2"]),
        ({"pets": [], "tagged": [{"kind": "dog"}, {"kind": "cat", "lives": 10}]}, ["tagged.0.legs", "tagged.1.lives"]),
        ({"pets": [], "tagged": [{"kind": "cow"}]}, ["tagged.0"]),
        (
            {"pets": [], "rooms": {"int": [1, "x"], "list[nullable[int]]": "x"}},
            ["rooms.int.1", "rooms.list[nullable[int]]"],
        ),
        ({}, ["pets"]),
        ([], ["body"]),
    ],
)
def test_any_union_is_resolved_by_the_value(home: object, found: list[str]) -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Home).validate_python(home)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.value.errors()]
    assert [each.field for each in findings(errors, home)] == found


def test_a_million_wrong_values_are_reported_as_twenty() -> None:
    body = {"pets": [5] * 20_000}
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Home).validate_python(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.value.errors()]
    assert [each.field for each in findings(errors, body)] == [f"pets.{i}" for i in range(20)]


UNKNOWN = {f"k{i}": 1 for i in range(5000)}
TURN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("body", "given"),
    [
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 600}] * 100}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", **UNKNOWN}]}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "image", **UNKNOWN}]}]}),
        (ChatRequest, {"messages": [[]] * 5000}),
        (ChatRequest, {"messages": [{**TURN, **UNKNOWN}] * 2}),
        (ChatRequest, {"messages": [TURN], **UNKNOWN}),
        (ChatRequest, {"messages": [TURN], "stop": [5] * 5000}),
        (CompletionRequest, {"prompt": [-1] * 5000}),
        (CompletionRequest, {"prompt": [""] * 5000}),
        (CompletionRequest, {"prompt": [[-1] * 5000] * 128}),
        (CompletionRequest, {"prompt": "x", "stop_token_ids": [-1] * 5000}),
        (CompareRequest, {"prompt": "x", "profiles": [{}] * 5000}),
        (CompareRequest, {"messages": [[]] * 5000, "profiles": [{"name": "p"}]}),
        (AliasTarget, {"weights": UNKNOWN}),
        (SpecBody, UNKNOWN),
        (SpecBody, {"persona": UNKNOWN, "fit": UNKNOWN, "queries": [UNKNOWN], "pairs": [UNKNOWN]}),
        (SpecBody, {"queries": [1] * 50_000, "pairs": [{}] * 50_000}),
        (SpecBody, {"fit": {"layers": ["a"] * 20_000}}),
    ],
)
def test_no_body_makes_an_error_of_each_of_its_many_faults(body: type[BaseModel], given: dict[str, Any]) -> None:
    """Each of pydantic's errors takes 15 µs and 3 kB, on the event loop."""
    with pytest.raises(ValidationError) as raised:
        body.model_validate(given)
    assert raised.value.error_count() < 300
