"""The REST client against a server that is scripted in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cli.client import ApiError, Client
from cli.config import Connection
from cli.errors import CliError

EVENTS = (
    'id: 1\nevent: progress\ndata: {"status": "running", "stage": "tuning"}\n\n'
    ": heartbeat\n\n"
    'id: 2\nevent: succeeded\ndata: {"status": "succeeded"}\n\n'
)


def client_of(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client(Connection("http://server", "az_key"), transport=httpx.MockTransport(answer))


def test_a_heartbeat_between_two_events_of_a_job_is_no_event() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=EVENTS)

    with client_of(answer) as client:
        statuses = [event["status"] for event in client.job_events("0190")]
    assert statuses == ["running", "succeeded"]


def test_a_list_is_read_page_by_page_and_no_further_than_its_limit() -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        first = int(asked[-1].get("cursor", 0))
        rows = [{"id": number} for number in range(first, first + int(asked[-1]["limit"]))]
        return httpx.Response(200, json={"data": rows, "next": str(first + len(rows))})

    with client_of(answer) as client:
        assert [row["id"] for row in client.all("/v1/jobs", 130)] == list(range(130))
    assert asked == [{"limit": "100"}, {"limit": "30", "cursor": "100"}]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (httpx.ReadTimeout("timed out"), "timed_out", "no answer within 60 s: try again; http://server/ready"),
        (
            httpx.ConnectError("refused"),
            "unreachable",
            r"nothing answers at http://server \(refused\): start .*alignez up",
        ),
        (httpx.RemoteProtocolError("cut"), "connection_lost", "broke \\(cut\\): try again"),
    ],
)
def test_a_server_that_gives_no_answer_is_one_line(error: Exception, code: str, says: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    with client_of(answer) as client, pytest.raises(CliError, match=says) as caught:
        client.call("GET", "/v1/profiles")
    assert caught.value.code == code


@pytest.mark.parametrize("content", ["<html>", "[]", '{"data": 3}', "{}"])
def test_another_kind_of_server_is_named_as_such(content: str) -> None:
    with (
        client_of(lambda request: httpx.Response(200, text=content)) as client,
        pytest.raises(CliError, match="does not answer as an alignez server does: check --url"),
    ):
        client.all("/v1/profiles")


def refusal(status: int, **error: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, json={"error": error}, headers={"retry-after": "7"})


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, {"message": "no"}, "the key was refused: pass --key or set ALIGNEZ_KEY"),
        (403, {"message": "members may not"}, "members may not; use a key of that role"),
        (503, {"message": "too busy"}, "too busy; try again in 7 s"),
        (404, {"message": "job x does not exist", "details": {"kind": "job", "ref": "x"}}, "^job x does not exist$"),
        (422, {"message": "must be text", "details": {"field": "queries.0"}}, "^queries.0: must be text$"),
        (
            422,
            {
                "message": "queries.0: must be text",
                "details": {
                    "field": "queries.0",
                    "errors": [{"field": "queries.0", "message": "must be text"}, {"field": "fit.x", "message": "no"}],
                },
            },
            "^queries.0: must be text; fit.x: no$",
        ),
        (418, {}, "http://server answered 418: check --url"),
    ],
)
def test_a_refusal_says_what_to_do_and_names_every_field(status: int, error: dict[str, Any], says: str) -> None:
    with client_of(refusal(status, **error)) as client, pytest.raises(ApiError, match=says):
        client.call("GET", "/v1/jobs/x")


@pytest.mark.parametrize(
    ("ref", "says"),
    [("chearful", "does not exist; did you mean cheerful\\?"), ("zorbly", "`alignez profiles list` shows yours")],
)
def test_an_unknown_profile_brings_the_nearest_name(ref: str, says: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/profiles":
            return httpx.Response(200, json={"data": [{"name": "formal"}, {"name": "cheerful"}], "next": None})
        missing = {"kind": "profile", "ref": ref}
        error = {"code": "not_found", "message": f"profile {ref} does not exist", "details": missing}
        return httpx.Response(404, json={"error": error})

    with client_of(answer) as client, pytest.raises(ApiError, match=says):
        client.call("POST", "/v1/chat/completions", {})


def test_an_address_that_no_server_can_have_is_one_line() -> None:
    with pytest.raises(CliError, match="is not an address"):
        Client(Connection("http://a\x00b", "az_key"))
