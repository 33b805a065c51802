"""The commands as a person meets them: help everywhere, errors of one line, answers of a server shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest
import typer
from typer.testing import CliRunner

from cli.main import app

runner = CliRunner()
PROFILE = {
    "id": "p-1",
    "name": "cheerful",
    "aliases": {"default": {"1": 1.0}},
    "base_model": "nano",
    "created_at": "2026-11-24T08:03:46.5Z",
}
VERSION = {
    "number": 1,
    "state": "ready",
    "quality": "weak",
    "quality_reasons": ["too few"],
    "layers": [0, 1],
    "sha256": "ab" * 32,
    "created_at": "2026-11-24T08:03:46.5Z",
}
ANSWERS: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/v1/profiles"): (200, {"data": [PROFILE], "next": None}),
    ("POST", "/v1/profiles"): (202, {"profile": PROFILE, "version": {"number": 1}, "job": {"id": "j-1"}}),
    ("GET", "/v1/profiles/p-1/versions/1"): (200, VERSION),
    ("POST", "/v1/profiles/cheerful/promote"): (
        409,
        {"error": {"code": "version_not_ready", "message": "version 2 is pending", "details": {}}},
    ),
    ("GET", "/v1/models"): (200, {"data": [{"id": "nano"}, {"id": "nano@cheerful", "parent": "nano"}]}),
}
EVENTS = {
    "/v1/jobs/j-1/events": [
        {"status": "running", "stage": "characteristics", "progress": {"characteristics": {"done": 4, "total": 4}}},
        {"status": "succeeded", "stage": "evaluation", "progress": {"evaluation": {"done": 1, "total": 1}}},
    ],
    "/v1/chat/completions": [{"choices": [{"delta": {"content": "Hel"}}]}, {"choices": [{"delta": {"content": "lo"}}]}],
}


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """A server with fixed answers, and the requests that it got."""
    seen: list[tuple[str, str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            path = self.path.partition("?")[0]
            seen.append((self.command, path, json.loads(self.rfile.read(length)) if length else None))
            if self.headers["authorization"] != "Bearer good":
                return self._send(401, {"error": {"code": "unauthenticated", "message": "no"}})
            if path in EVENTS:
                text = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS[path]) + "data: [DONE]\n\n"
                return self._send(200, text, "text/event-stream")
            status, body = ANSWERS.get(
                (self.command, path), (404, {"error": {"code": "not_found", "message": f"no {path}"}})
            )
            return self._send(status, body)

        def _send(self, status: int, body: Any, kind: str = "application/json") -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", seen
    http.shutdown()
    http.server_close()
    thread.join()


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", sorted(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(path: tuple[str, ...]) -> None:
    result = runner.invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    sentences = [line.strip() for line in result.output.splitlines() if line.strip() and "Usage" not in line]
    assert len(sentences[0]) > 12


def test_creating_a_profile_shows_progress_quality_and_what_to_do_next(server: Any) -> None:
    url, seen = server
    result = runner.invoke(
        app,
        [
            "profiles",
            "create",
            "cheerful",
            "--preferred",
            "cheerful",
            "--fit",
            "neighbors=4",
            "--url",
            url,
            "--key",
            "good",
        ],
    )
    assert result.exit_code == 0, result.output
    assert seen[0] == (
        "POST",
        "/v1/profiles",
        {"name": "cheerful", "persona": {"preferred": "cheerful"}, "fit": {"neighbors": 4}},
    )
    assert "characteristics  4/4" in result.output
    assert 'quality weak (["too few"])' in result.output
    assert "alignez chat --profile cheerful" in result.output


def test_chat_streams_the_answer_of_the_named_profile(server: Any) -> None:
    url, seen = server
    result = runner.invoke(app, ["chat", "-m", "Hi", "--profile", "cheerful#1", "--url", url, "--key", "good"])
    assert result.output == "Hello\n"
    body = seen[-1][2]
    assert body["profile"] == {"name": "cheerful", "version": 1}
    assert body["model"] == "nano"


@pytest.mark.parametrize("user", ["ada", "a/b", "a b#1?x=y", "anna@example.org", "Жанна", "../../admin"])
def test_chat_as_an_end_user_takes_any_id_in_one_path_segment(server: Any, user: str) -> None:
    url, seen = server
    runner.invoke(app, ["chat", "-m", "Hi", "--user", user, "--url", url, "--key", "good"])
    assert seen[-1][:2] == ("POST", f"/v1/users/{quote(user, safe='')}/chat/completions")


def test_a_job_that_is_no_id_is_asked_for_as_it_was_typed(server: Any) -> None:
    url, seen = server
    result = runner.invoke(app, ["jobs", "cancel", "../profiles", "--url", url, "--key", "good"])
    assert result.exit_code == 1
    assert seen[-1][:2] == ("POST", "/v1/jobs/..%2Fprofiles/cancel")


def test_lists_are_tables_and_json(server: Any) -> None:
    url, _ = server
    table = runner.invoke(app, ["profiles", "list", "--url", url, "--key", "good"])
    assert "cheerful  default → 1" in table.output
    as_json = runner.invoke(app, ["profiles", "list", "--json", "--url", url, "--key", "good"])
    assert json.loads(as_json.output) == [PROFILE]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["profiles", "list", "--key", "bad"], "the key was refused"),
        (["profiles", "show", "nobody", "--key", "good"], "no /v1/profiles/nobody"),
        (["profiles", "promote", "cheerful", "2", "--key", "good"], "version 2 is pending"),
    ],
)
def test_refusals_are_one_line(server: Any, arguments: list[str], says: str) -> None:
    url, _ = server
    result = runner.invoke(app, [*arguments, "--url", url])
    assert result.exit_code == 1
    assert says in result.output
    assert "Traceback" not in result.output


def test_nothing_listening_is_one_line_that_says_how_to_start() -> None:
    result = runner.invoke(app, ["profiles", "list", "--url", "http://127.0.0.1:9", "--key", "k"])
    assert result.exit_code == 1
    assert "alignez up" in result.output
