"""`POST /v1/compare`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Tenant
from tests.api.events import BARE, parse


def compare(tenant: Tenant, *profiles: str | dict[str, Any], **more: Any) -> Any:
    named = [{"name": p} if isinstance(p, str) else p for p in profiles]
    return tenant.post("/v1/compare", json={"prompt": "What is the sea?", "profiles": named, **more})


def test_columns_stand_side_by_side_with_one_seed(tenant: Tenant) -> None:
    one, two = tenant.ready("one"), tenant.ready("two", fit={"strength": 0.5})
    body = compare(tenant, "one", {"name": "two", "version": 1}, seed=7).json()

    assert [c["name"] for c in body["columns"]] == ["base", "one", "two#1"]
    assert [c["index"] for c in body["columns"]] == [0, 1, 2]
    assert body["columns"][0]["alignez"] == BARE
    assert [c["alignez"]["sha256"] for c in body["columns"][1:]] == [one.sha256, two.sha256]
    assert {r.seed for r in tenant.engine.requests[-3:]} == {7}
    # Each column is what the profile says alone with this seed.
    alone = tenant.chat("What is the sea?", seed=7, temperature=0.8, model="fake@one").json()
    assert body["columns"][1]["text"] == alone["choices"][0]["message"]["content"]


def test_a_stream_grows_every_column_and_tells_when_it_ends(tenant: Tenant) -> None:
    tenant.ready("one")
    whole = compare(tenant, "one", seed=7).json()
    events = parse(compare(tenant, "one", seed=7, stream=True).text)

    assert events[0][1] == "columns"
    assert events[0][2]["columns"] == [{"index": 0, "name": "base"}, {"index": 1, "name": "one"}]
    assert events[-1][1:] == ("end", {"prompt_tokens": whole["prompt_tokens"]})
    for column in whole["columns"]:
        mine = [data for _, kind, data in events if kind == "token" and data["index"] == column["index"]]
        assert {data["name"] for data in mine} == {column["name"]}
        assert "".join(data["text"] for data in mine) == column["text"]
        (ended,) = [data for _, kind, data in events if kind == "column" and data["index"] == column["index"]]
        assert {key: ended[key] for key in ("finish_reason", "tokens", "alignez")} == {
            key: column[key] for key in ("finish_reason", "tokens", "alignez")
        }


def test_the_base_can_be_left_out_and_columns_be_named(tenant: Tenant) -> None:
    tenant.ready("one")
    body = compare(
        tenant,
        {"name": "one", "strength": 0, "label": "off"},
        {"name": "one", "alias": "default"},
        include_base=False,
        messages=[{"role": "user", "content": "x"}],
        prompt=None,
    ).json()
    assert [c["name"] for c in body["columns"]] == ["off", "one:default"]


@pytest.mark.parametrize(
    "more",
    [{"prompt": None}, {"messages": [{"role": "user", "content": "x"}]}, {"profiles": []}, {"prompt": ""},
     {"profiles": [{"name": "p"}] * 9}, {"temperature": 3}, {"odd": 1}, {"prompt": "a\x00"}, {"seed": -1}],
)  # fmt: skip
def test_malformed_comparisons_are_refused_in_our_envelope(tenant: Tenant, more: dict[str, Any]) -> None:
    reply = compare(tenant, "p", **more)
    assert reply.status_code == 422
    assert set(reply.json()["error"]) == {"code", "message", "details", "request_id"}


def test_unknown_foreign_and_unready_profiles(tenant: Tenant, stranger: Tenant) -> None:
    tenant.ready("p")
    tenant.pending("q")
    assert compare(tenant, "none").status_code == 404
    assert compare(stranger, "p").status_code == 404
    assert compare(tenant, "p", "q").status_code == 409
