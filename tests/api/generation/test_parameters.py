"""Every field of a generation request is honoured, without effect, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.generation.parameters import DESCRIPTIVE, UNSUPPORTED
from tests.api.conftest import Tenant

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/users/anna/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/completions": {"model": "fake", "prompt": "x", "max_tokens": 1},
    "/v1/users/anna/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/compare": {"prompt": "x", "profiles": [{"name": "p"}], "max_tokens": 1},
}
PATHS = list(BODIES)
OPENAI = [path for path in PATHS if path != "/v1/compare"]
#: A value that asks for something, of each setting that no engine honours.
ASKED: dict[str, object] = {
    "add_generation_prompt": False, "add_special_tokens": False, "allowed_token_ids": [5], "audio": {"voice": "x"},
    "bad_words": ["x"], "best_of": 2, "cache_salt": "x", "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False}, "continue_final_message": True, "documents": [{"text": "x"}],
    "echo": True, "frequency_penalty": 0.5, "function_call": {"name": "f"}, "functions": [{"name": "f"}],
    "guided_choice": ["yes", "no"], "guided_decoding_backend": "outlines", "guided_grammar": "root ::= x",
    "guided_json": {"type": "object"}, "guided_regex": "[a-z]+", "guided_whitespace_pattern": " ",
    "include_stop_str_in_output": True, "length_penalty": 0.8, "logit_bias": {"5": 1}, "logits_processors": ["x"],
    "min_p": 0.1, "min_tokens": 5, "mm_processor_kwargs": {"a": 1}, "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"}, "presence_penalty": 0.5, "priority": 1, "prompt_logprobs": 1,
    "reasoning_effort": "low", "repetition_penalty": 1.3, "response_format": {"type": "json_object"},
    "return_token_ids": True, "return_tokens_as_token_ids": True, "skip_special_tokens": False,
    "spaces_between_special_tokens": False, "structured_outputs": {"choice": ["yes"]}, "suffix": "x",
    "tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f"}}],
    "truncate_prompt_tokens": 4, "use_beam_search": True, "verbosity": "low", "web_search_options": {},
}  # fmt: skip


def error_of(reply: Any, path: str) -> dict[str, Any]:
    """A refusal's error, with the field under `param` in both envelopes."""
    assert reply.status_code == (400 if path in OPENAI else 422), reply.text
    error = dict(reply.json()["error"])
    return {**error, "param": error.get("param", error["details"]["field"])}


@pytest.mark.parametrize("path", PATHS)
def test_a_setting_that_is_not_honoured_is_refused_by_name(tenant: Tenant, path: str) -> None:
    assert set(ASKED) == set(UNSUPPORTED)
    for name, value in ASKED.items():
        error = error_of(tenant.post(path, json={**BODIES[path], name: value}), path)
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        assert error["message"].startswith(f"{name}: ")
        assert "leave it out" in error["message"]


def test_the_message_names_the_value_and_the_one_that_passes(tenant: Tenant) -> None:
    message = tenant.chat(repetition_penalty=1.3).json()["error"]["message"]
    assert message == "repetition_penalty: is not supported here (got 1.3); leave it out, or send 1"


@pytest.mark.parametrize("path", PATHS)
def test_values_that_mean_off_and_fields_that_only_describe_pass(tenant: Tenant, path: str) -> None:
    tenant.ready("p")
    for values in zip(*(_padded(off) for off in UNSUPPORTED.values()), strict=True):
        neutral = dict(zip(UNSUPPORTED, values, strict=True))
        assert tenant.post(path, json={**BODIES[path], **neutral}).status_code == 200
    described = {name: {"a": "b"} for name in DESCRIPTIVE}
    assert tenant.post(path, json={**BODIES[path], **described}).status_code == 200


def _padded(values: tuple[object, ...]) -> list[object]:
    return [values[min(i, len(values) - 1)] for i in range(3)]


@pytest.mark.parametrize("path", PATHS)
def test_true_is_not_one(tenant: Tenant, path: str) -> None:
    for field in ("max_tokens", "temperature", "seed"):
        assert error_of(tenant.post(path, json={**BODIES[path], field: True}), path)["param"] == field


def test_true_is_not_token_one(tenant: Tenant) -> None:
    for prompt in ([True, 5], [1, "5"], [[1], [False]]):
        assert tenant.post("/v1/completions", json={"model": "fake", "prompt": prompt}).status_code == 400


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_field_is_refused_with_the_nearest_known_name(tenant: Tenant, path: str) -> None:
    for name, known in (("max_tokns", "max_tokens"), ("profil", "profile"), ("temprature", "temperature")):
        if path == "/v1/compare" and known == "profile":
            known = "profiles"
        for value in (1, None):
            error = error_of(tenant.post(path, json={**BODIES[path], name: value}), path)
            assert (error["code"], error["param"]) == ("unknown_parameter", name)
            assert f"did you mean {known!r}" in error["message"]
    for name in ("made_up", "\ud800", "{x}", "y" * 5000, ""):
        body = json.dumps({**BODIES[path], name: 1})
        error = error_of(tenant.post(path, content=body, headers={"content-type": "application/json"}), path)
        assert error["code"] == "unknown_parameter"
        assert "leave it out" in error["message"]
        assert len(error["message"]) < 200


@pytest.mark.parametrize("path", PATHS)
def test_null_stands_for_any_field_left_out(tenant: Tenant, path: str) -> None:
    tenant.ready("p")
    names = {"/v1/compare": ("temperature", "top_p", "seed", "stop", "stream", "include_base", "messages")}
    common = ("temperature", "top_p", "top_k", "n", "seed", "stop", "stop_token_ids", "stream", "stream_options",
              "user", "ignore_eos", "model", "profile", "logprobs")  # fmt: skip
    nulls = dict.fromkeys(names.get(path, common))
    assert tenant.post(path, json={**BODIES[path], **nulls}).status_code == 200


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(
    ("field", "value", "param", "code"),
    [
        ("stream_options", {"include_usag": True}, "stream_options.include_usag", "unknown_parameter"),
        (
            "stream_options",
            {"continuous_usage_stats": True},
            "stream_options.continuous_usage_stats",
            "unsupported_parameter",
        ),
        ("profile", {"name": "p", "strenght": 2}, "profile.strenght", "unknown_parameter"),
    ],
)
def test_nested_objects_too(tenant: Tenant, path: str, field: str, value: object, param: str, code: str) -> None:
    error = error_of(tenant.post(path, json={**BODIES[path], field: value}), path)
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"contents": "x"}, "contents", "unknown_parameter"),
        ({"tool_calls": [{"id": "1"}]}, "tool_calls", "unsupported_parameter"),
        ({"tool_call_id": "1"}, "tool_call_id", "unsupported_parameter"),
        ({"role": "tool", "tool_call_id": "1"}, "role", "invalid_request"),
    ],
)
def test_messages_too(tenant: Tenant, message: dict[str, Any], param: str, code: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "user", "content": "y", **message}]
    error = error_of(tenant.post("/v1/chat/completions", json={"messages": messages}), "/v1/chat/completions")
    assert (error["code"], error["param"]) == (code, f"messages.1.{param}")
    compared = {"messages": messages, "profiles": [{"name": "p"}]}
    error = error_of(tenant.post("/v1/compare", json=compared), "/v1/compare")
    assert (error["code"], error["param"]) == (code, f"messages.1.{param}")


def test_a_participants_name_is_passed_over(tenant: Tenant) -> None:
    body = {"messages": [{"role": "user", "content": "Hi", "name": "anna"}], "max_tokens": 1}
    assert tenant.post("/v1/chat/completions", json=body).status_code == 200


def test_columns_of_a_comparison_too(tenant: Tenant) -> None:
    body = {"prompt": "x", "profiles": [{"name": "p", "lable": "x"}]}
    error = error_of(tenant.post("/v1/compare", json=body), "/v1/compare")
    assert (error["code"], error["param"]) == ("unknown_parameter", "profiles.0.lable")
    assert "did you mean 'label'" in error["message"]


@pytest.mark.parametrize("path", OPENAI)
def test_tools_that_must_not_be_called_are_harmless(tenant: Tenant, path: str) -> None:
    for off in (
        {"tools": ASKED["tools"], "tool_choice": "none"},
        {"functions": ASKED["functions"], "function_call": "none"},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
    ):
        assert tenant.post(path, json={**BODIES[path], **off}).status_code == 200, off
    for on in ({"tools": ASKED["tools"], "tool_choice": "auto"}, {"tools": ASKED["tools"]}):
        error = error_of(tenant.post(path, json={**BODIES[path], **on}), path)
        assert error["param"] == "tools"


def test_rules_on_several_fields_name_the_field_to_change(tenant: Tenant) -> None:
    assert tenant.chat(top_logprobs=2).json()["error"]["param"] == "top_logprobs"
    both = {"name": "p", "alias": "a", "version": 1}
    assert tenant.chat(profile=both).json()["error"]["param"] == "profile.version"
    reply = tenant.post("/v1/compare", json={"profiles": [{"name": "p"}]})
    assert reply.json()["error"]["details"]["field"] == "prompt"


def test_an_assistant_turn_may_be_empty(tenant: Tenant) -> None:
    def rendered(turn: dict[str, Any]) -> Any:
        question = {"role": "user", "content": "x"}
        body = {"messages": [question, turn, question], "max_tokens": 1}
        reply = tenant.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        return tenant.engine.requests[-1].prompt

    empty = rendered({"role": "assistant", "content": ""})
    assert rendered({"role": "assistant", "content": None}) == empty
    # As OpenAI's client writes back what it has read.
    echoed = dict.fromkeys(("content", "refusal", "annotations", "audio", "function_call", "tool_calls"))
    assert rendered({"role": "assistant", **echoed}) == empty
    for role in ("user", "system", "developer"):
        body = {"messages": [{"role": role, "content": None}]}
        error = tenant.post("/v1/chat/completions", json=body).json()["error"]
        assert error["param"] == "messages.0.content"
        assert "needs a text" in error["message"]
