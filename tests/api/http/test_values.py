"""Values at the edge of what Postgres and JSON hold: each is taken or refused by name, and none is a 500."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from fastapi import FastAPI

from tests.api.conftest import Tenant

UNKNOWN = "01a20be1-5033-74a9-bc10-d9d9fc8d0a3a"
PHRASES = {"preferred": "a", "dispreferred": "b"}
MESSAGE = {"role": "user", "content": "x"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "y"}]}
#: Every route with a JSON body, with bodies that between them have every field of text or number.
BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("post", "/v1/profiles", {
        "name": "q", "description": "d", "base_model": "fake", "persona": {"description": "d", **PHRASES},
        "queries": ["one", {"text": "two", **PHRASES}], "pairs": [{"query": "three", **PHRASES}],
        "fit": {"method": "auto", "contrast": 1, "contrast_form": "full", "rank": 3, "ridge": 1, "layers": 2,
                "strength": 1, "steps": 4, "neighbors": 2, "query_encoder": "lm", "judge": "self", "prompt_margin": 1,
                "answers": 4, "tune_queries": 1, "held_out_queries": 1, "answer_tokens": 4, "own_queries": 1,
                "temperature": 1, "seed": 1},
    }),
    ("post", "/v1/profiles", {
        "name": "r", "persona": PHRASES,
        "fit": {"method": "alignez", "layers": [0, 1], "layer_rule": "consistency", "representation": "prompt",
                "edit_rule": "sequential", "characteristics_tokens": 4},
    }),
    ("patch", "/v1/profiles/p", {"name": "p", "description": "d"}),
    ("post", "/v1/profiles/p/versions", {"persona": PHRASES}),
    ("post", "/v1/profiles/p/versions/1/evaluate", {
        "judge": "self", "held_out_queries": 1, "answer_tokens": 1, "seed": 1,
    }),
    ("post", "/v1/profiles/p/promote", {"version": 1}),
    ("put", "/v1/profiles/p/aliases/beta", {"version": 1}),
    ("put", "/v1/profiles/p/aliases/beta", {"weights": {"1": 1, "2": 1}}),
    ("put", "/v1/users/anna/profile", {"profile": "p", "alias": "default"}),
    ("put", "/v1/users/anna/profile", {"profile": "p", "version": 1}),
    ("post", "/admin/tenants", {"name": "t", "max_queued_jobs": 5}),
    ("post", f"/admin/keys/{UNKNOWN}/rotate", {"overlap_s": 60}),
    ("post", f"/v1/keys/{UNKNOWN}/rotate", {"overlap_s": 60}),
    ("post", "/v1/keys", {
        "name": "k", "role": "inference", "expires_at": "2999-01-01T00:00:00Z", "profile": "p", "end_user": "ada",
    }),
    ("post", "/admin/keys", {
        "name": "k", "role": "inference", "expires_at": "2999-01-01T00:00:00Z", "profile": "p", "end_user": "ada",
    }),
    ("post", "/v1/chat/completions", {
        "model": "fake", "profile": {"name": "p", "alias": "default", "strength": 1}, "user": "anna", "stop": ["x"],
        "messages": [MESSAGE, PARTS], "temperature": 1,
        "top_p": 1, "top_k": 1, "max_tokens": 1, "max_completion_tokens": 1, "n": 1, "seed": 1, "logprobs": True,
        "top_logprobs": 1, "stop_token_ids": [1],
    }),
    ("post", "/v1/chat/completions", {"model": "fake", "profile": {"name": "p", "version": 1}, "messages": [MESSAGE]}),
    ("post", "/v1/users/anna/chat/completions", {"model": "fake", "stop": "x", "messages": [PARTS], "max_tokens": 1}),
    ("post", "/v1/completions", {"model": "fake", "prompt": "x", "max_tokens": 1, "logprobs": 1}),
    ("post", "/v1/users/anna/completions", {"model": "fake", "prompt": ["x", "y"], "max_tokens": 1}),
    ("post", "/v1/completions", {"model": "fake", "prompt": [1, 2], "max_tokens": 1}),
    ("post", "/v1/compare", {
        "prompt": "x", "profiles": [{"name": "p", "alias": "default", "label": "l", "strength": 1}], "max_tokens": 1,
        "temperature": 1, "top_p": 1, "seed": 1, "stop": ["x"],
    }),
    ("post", "/v1/compare", {"messages": [MESSAGE, PARTS], "profiles": [{"name": "p", "version": 1}], "max_tokens": 1}),
]  # fmt: skip
LONE = "\ud800"
NUMBERS = (10**400, -(10**400), 2**31, 2**32, 2**63, 2**64, -(2**63), 5e-324, 1.7e308, -0.0)

Path = tuple[str | int, ...]


def leaves(value: Any, kind: type | tuple[type, ...], path: Path = ()) -> Iterator[Path]:
    """Places of all values of a kind."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, kind, (*path, name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, kind, (*path, i))
    elif isinstance(value, kind) and not isinstance(value, bool):
        yield path


def changed(body: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    """The body with another value at one place."""
    copy: Any = deepcopy(body)
    inner = copy
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return dict(copy)


def send(tenant: Tenant, method: str, path: str, body: object) -> Any:
    text = json.dumps(body)  # lone surrogates as escapes, as a client's own JSON library writes them
    return getattr(tenant, method)(path, content=text, headers={"content-type": "application/json"})


def named(reply: Any) -> str:
    """The field that an error blames, in either envelope."""
    error = reply.json()["error"]
    return str(error.get("param") or error["details"].get("field"))


@pytest.fixture
def owner(operator: Tenant) -> Tenant:
    """An administrator whose profile `p` has two ready versions."""
    operator.ready("p")
    operator.next_version("p")
    return operator


@pytest.mark.parametrize("text", [LONE, f"a{LONE}b", "\udfff\ud800", "a\x00b"])
def test_text_that_cannot_be_stored_is_refused_by_name_in_every_field(owner: Tenant, text: str) -> None:
    sent = 0
    for method, path, body in BODIES:
        for place in leaves(body, str):
            reply = send(owner, method, path, changed(body, place, text))
            field = ".".join(map(str, place))
            assert 400 <= reply.status_code < 500, (path, field, reply.text)
            assert field == named(reply) or field.startswith(f"{named(reply)}."), (path, field, reply.text)
            sent += 1
    assert sent > 60


def test_every_number_is_taken_or_refused_by_name(owner: Tenant) -> None:
    sent = refused = 0
    for method, path, body in BODIES:
        for place in leaves(body, (int, float)):
            for number in NUMBERS:
                reply = send(owner, method, path, changed(body, place, number))
                field = ".".join(map(str, place))
                assert reply.status_code < 500, (path, field, number, reply.text)
                if reply.status_code in (400, 422):
                    assert field == named(reply) or field.startswith(f"{named(reply)}."), (path, field, reply.text)
                    refused += 1
                sent += 1
    assert sent > 300
    assert refused > sent / 2


def test_the_bodies_above_have_every_field_of_text_or_number(app: FastAPI) -> None:
    schema = app.openapi()
    checked, missing = 0, []
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                sent = {part for _, at, body in BODIES if _same_route(path, at)
                        for place in leaves(body, (str, int, float)) for part in place}  # fmt: skip
                fields = list(_plain_fields(schema, content["schema"]))
                checked += len(fields)
                missing += [(path, name) for name in fields if name not in sent]
    # A new version takes what a new profile takes; so does an end user's conversation.
    twice = ("/v1/profiles/{profile}/versions", "/v1/users/{user}/chat/completions", "/v1/users/{user}/completions",
             "/v1/completions")  # fmt: skip
    assert [each for each in missing if each[0] not in twice] == []
    assert checked > 80


def _same_route(template: str, path: str) -> bool:
    parts, given = template.split("/"), path.split("/")
    return len(parts) == len(given) and all(p.startswith("{") or p == g for p, g in zip(parts, given, strict=True))


def _plain_fields(components: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """Names of all fields below a schema that may be text or a number."""
    if "$ref" in schema:
        schema = components["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for name, field in schema.get("properties", {}).items():
        kinds = [field, *field.get("anyOf", ())]
        if any(kind.get("type") in ("string", "number", "integer") and "const" not in kind for kind in kinds):
            yield name
        yield from _plain_fields(components, field)
    for inner in (*schema.get("anyOf", ()), schema.get("items")):
        if isinstance(inner, dict):
            yield from _plain_fields(components, inner)


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({"1": 5e-324, "2": 1e6}, "weights.1"),
        ({"1": 1e-7, "2": 1}, "weights.1"),
        ({"1": 0, "2": 1}, "weights.1"),
        ({"1": 1, "2": 1e7}, "weights.2"),
        ({"1": 1, "01": 1}, "weights.01"),
        ({"2147483648": 1}, "weights.2147483648"),
        ({}, "weights"),
    ],
)
def test_weights_whose_shares_would_vanish_are_refused(owner: Tenant, weights: dict[str, float], field: str) -> None:
    reply = owner.put("/v1/profiles/p/aliases/beta", json={"weights": weights})
    assert (reply.status_code, named(reply)) == (422, field)


def test_the_smallest_weight_beside_the_largest_is_kept(owner: Tenant) -> None:
    path = "/v1/profiles/p/aliases/beta"
    targets = owner.put(path, json={"weights": {"1": 1e-6, "2": 1e6}}).json()["targets"]
    assert targets["1"] > 0
    assert owner.put("/v1/users/anna/profile", json={"profile": "p", "alias": "beta"}).status_code == 200
    assert owner.chat(user="anna").status_code == 200


LISTS = [
    "/v1/profiles", "/v1/jobs", "/v1/profiles/p/versions", "/v1/profiles/p/versions/1/pairs", "/admin/tenants",
    "/admin/keys", "/admin/audit", "/admin/usage", "/admin/profiles",
]  # fmt: skip
CURSORS = [str(2**31), str(2**63 - 1), str(2**63), str(2**200), "-1", " 1", "+1", "1_0", "1\x00", "0x1", "zzz", "",
           f"{{{UNKNOWN}}}", "\u0661"]  # fmt: skip


def coded(cursor: str) -> str:
    return base64.urlsafe_b64encode(cursor.encode()).decode().rstrip("=")


@pytest.mark.parametrize("path", LISTS)
def test_a_cursor_that_no_list_gave_is_refused(owner: Tenant, path: str) -> None:
    taken = []
    for cursor in [*map(coded, CURSORS), "\ud7ff", "=", "MQ==", "M Q", "%00", "a" * 201]:
        reply = owner.get(path, params={"cursor": cursor})
        if reply.status_code == 200:
            taken.append(cursor)
        else:
            assert (reply.status_code, named(reply)) == (422, "cursor"), (cursor, reply.text)
    # Numbers of 64 bits are cursors where ids have as many.
    wide = path in ("/admin/audit", "/admin/usage")
    assert taken == ([coded(str(2**31)), coded(str(2**63 - 1))] if wide else [])


@pytest.mark.parametrize("key", ["\x7f", "a\tb", "\xe9", "x" * 201, ""])
def test_an_idempotency_key_of_other_characters_is_refused(owner: Tenant, key: str) -> None:
    for path in ("/v1/profiles", "/v1/profiles/p/promote", "/v1/profiles/p/rollback"):
        body = {"version": 1} if path.endswith("promote") else {"name": "x", "persona": PHRASES}
        reply = owner.post(path, json=body, headers={"Idempotency-Key": key.encode("latin-1")})
        assert (reply.status_code, named(reply)) == (422, "Idempotency-Key")


@pytest.mark.parametrize(
    "expires_at",
    ["9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z", "9999-01-01T00:00:00Z", "9998-12-31T23:59:59-14:00"],
)
def test_an_expiry_beyond_the_calendar_is_refused(operator: Tenant, expires_at: str) -> None:
    reply = operator.post("/admin/keys", json={"name": "k", "expires_at": expires_at})
    assert (reply.status_code, named(reply)) == (422, "expires_at")
    assert "9999-01-01" in reply.json()["error"]["message"]
    assert operator.get("/admin/keys").status_code == 200


@pytest.mark.parametrize(
    "expires_at", ["9998-12-31T23:59:59+14:00", "9998-12-31T23:59:59Z", "2999-06-01T12:00:00-14:00"]
)
def test_a_key_with_a_late_expiry_works_and_shows_it_in_utc(operator: Tenant, expires_at: str) -> None:
    made = operator.post("/admin/keys", json={"name": "k", "expires_at": expires_at}).json()
    assert made["expires_at"].endswith("Z")
    header = {"Authorization": f"Bearer {made['secret']}"}
    assert operator.client.get("/v1/profiles", headers=header).status_code == 200
    assert made["id"] in [row["id"] for row in operator.get("/admin/keys").json()["data"]]


@pytest.mark.parametrize("since", ["0001-01-01", "9999-12-31", "-1", "1e30", "10000-01-01", "\u0661"])
def test_a_first_day_of_usage_is_any_date_or_refused(operator: Tenant, since: str) -> None:
    reply = operator.get("/admin/usage", params={"since": since})
    assert reply.status_code == 200 or (reply.status_code, named(reply)) == (422, "since")
