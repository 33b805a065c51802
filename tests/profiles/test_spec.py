"""What a spec may hold, as `profiles` itself sees it, whoever calls; and the normal form that is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from profiles.errors import InvalidSpec
from profiles.spec import (
    NAME_LIMIT,
    QUERIES_LIMIT,
    TEXT_LIMIT,
    TOTAL_LIMIT,
    USER_LIMIT,
    check_end_user,
    check_layers,
    check_name,
    check_text,
    normal_spec,
    parse_id,
)

PERSONA = {"preferred": "cheerful", "dispreferred": "gloomy"}
PAIR = {"query": "Tea?", "preferred": "Yes, please!", "dispreferred": "No."}


def refusal(act: Callable[[], object]) -> InvalidSpec:
    with pytest.raises(InvalidSpec) as caught:
        act()
    assert str(caught.value) == f"{caught.value.field}: {caught.value.message}"
    return caught.value


@pytest.mark.parametrize(
    ("spec", "field", "says"),
    [
        ({}, "persona", "a persona, queries or pairs are needed"),
        ({"persona": None, "queries": [], "pairs": None}, "persona", "needed"),
        ({"queries": [{"text": "q"}] * QUERIES_LIMIT, "pairs": [PAIR]}, "queries", "2000 queries and 1 pairs"),
        ({"queries": [{"text": "x" * TEXT_LIMIT}] * (TOTAL_LIMIT // TEXT_LIMIT + 1)}, "queries", str(TOTAL_LIMIT)),
    ],
)
def test_a_bad_spec_is_refused_by_field_and_limit(spec: dict[str, Any], field: str, says: str) -> None:
    error = refusal(lambda: normal_spec(spec))
    assert error.field == field
    assert says in error.message


def test_the_normal_form_has_every_field() -> None:
    queries = [{"text": "One?"}]
    assert normal_spec({"queries": queries, "pairs": None}) == {
        "persona": None, "queries": queries, "pairs": [], "fit": {},
    }  # fmt: skip
    assert normal_spec({"persona": PERSONA, "pairs": [PAIR], "fit": None}) == {
        "persona": PERSONA, "queries": [], "pairs": [PAIR], "fit": {},
    }  # fmt: skip


class TestParent:
    PARENT = normal_spec(
        {
            "persona": PERSONA,
            "queries": [{"text": "a"}, {"text": "b"}],
            "fit": {"method": "alignez", "neighbors": 2, "steps": 3},
        }
    )

    def test_what_is_not_given_is_taken_over(self) -> None:
        assert normal_spec({}, self.PARENT) == self.PARENT
        assert normal_spec({"persona": None, "fit": None}, self.PARENT) == self.PARENT

    def test_a_field_is_replaced_as_a_whole_and_the_fit_setting_by_setting(self) -> None:
        made = normal_spec({"persona": {"preferred": "kind"}, "fit": {"strength": 0.5}}, self.PARENT)
        assert made["persona"] == {"preferred": "kind"}
        assert made["queries"] == self.PARENT["queries"]
        assert made["fit"] == {"method": "alignez", "neighbors": 2, "steps": 3, "strength": 0.5}

    def test_none_is_the_default_again_except_for_steps(self) -> None:
        made = normal_spec({"fit": {"method": None, "neighbors": None, "steps": None, "seed": None}}, self.PARENT)
        assert made["fit"] == {"steps": None}  # the method changed, so its settings went

    def test_settings_of_another_method_are_not_taken_over(self) -> None:
        assert normal_spec({"fit": {"method": "distill", "seed": 5}}, self.PARENT)["fit"] == {
            "method": "distill", "seed": 5,
        }  # fmt: skip
        assert normal_spec({"fit": {"method": "alignez", "seed": 5}}, self.PARENT)["fit"]["steps"] == 3
        by_default = normal_spec({"queries": [{"text": "a"}], "fit": {"contrast": 2.0}})
        assert normal_spec({"fit": {"method": "auto"}}, by_default)["fit"] == {"contrast": 2.0, "method": "auto"}
        assert normal_spec({"fit": {"method": "prompt"}}, by_default)["fit"] == {"method": "prompt"}


@pytest.mark.parametrize(
    ("layers", "says"),
    [(5, "5 layers are asked for, nano has 4"), ([0, 4], "layer 4 does not exist, nano has 0 to 3")],
)
def test_layers_that_the_model_does_not_have(layers: object, says: str) -> None:
    error = refusal(lambda: check_layers({"layers": layers}, 4, "nano"))
    assert (error.field, error.message) == ("fit.layers", says)


@pytest.mark.parametrize("layers", [None, "all", 1, 4, [0], [0, 3]])
def test_layers_that_the_model_has(layers: object) -> None:
    check_layers({"layers": layers}, 4, "nano")


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d", "x" * NAME_LIMIT])
def test_names(name: str) -> None:
    assert check_name("name", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        ".a",
        "_a",
        "a b",
        "a/b",
        "a@b",
        "a:b",
        "a#b",
        "a\n",
        "é",
        "x" * (NAME_LIMIT + 1),
        "07ed70b8-7aa7-4200-a8ca-6e736dc2d6a1",
    ],
)
def test_what_is_no_name(name: str) -> None:
    assert refusal(lambda: check_name("name", name)).field == "name"


@pytest.mark.parametrize("user", ["", " ", "x" * (USER_LIMIT + 1), "nul\x00", "\udfff"])
def test_what_is_no_end_user(user: str) -> None:
    assert refusal(lambda: check_end_user(user)).field == "user"


def test_text_comes_back_as_it_is() -> None:
    assert check_text("note", " Жанна ", 7) == " Жанна "


def test_only_a_uuid_is_an_id() -> None:
    given = uuid4()
    assert parse_id(str(given)) == given
    for ref in ("", "cheerful", str(given)[:-1], "{}"):
        assert parse_id(ref) is None
