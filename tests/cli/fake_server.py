"""A server with fixed answers, and the answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Method, path without its query, body.
Request = tuple[str, str, Any]

PROFILE: dict[str, Any] = {
    "id": "p-1",
    "name": "cheerful",
    "aliases": {"default": {"1": 1.0}},
    "base_model": "nano",
    "created_at": "2026-11-24T08:03:46.5Z",
}
VERSION: dict[str, Any] = {
    "number": 1,
    "state": "ready",
    "quality": "weak",
    "quality_reasons": ["too few"],
    "method": "distill",
    "layers": [0, 1],
    "sha256": "ab" * 32,
    "created_at": "2026-11-24T08:03:46.5Z",
}
PROOF: dict[str, Any] = {
    "profile": "cheerful",
    "version": 1,
    "judge": "self",
    "quality": "good",
    "reasons": [],
    "choice": {"chosen": "4 layers, rank 3, λ 1", "reason": "largest net win", "trace": []},
    "report": {
        "n": 32,
        "comparisons": {
            "over_bare": {"win": 28, "tie": 1, "lose": 3, "net": 0.78, "interval": [0.56, 0.94]},
            "over_prompt": {"win": 20, "tie": 2, "lose": 10, "net": 0.31, "interval": [-0.03, 0.6]},
            "prompt_over_bare": {"win": 22, "tie": 0, "lose": 10, "net": 0.38, "interval": [0.1, 0.65]},
        },
        "cost": {
            "bare": {"prompt_tokens": 31.0, "milliseconds": 20.5, "new_tokens": 8},
            "prompt": {"prompt_tokens": 49.0, "milliseconds": 22.5, "new_tokens": 8},
            "edited": {"prompt_tokens": 31.0, "milliseconds": 20.9, "new_tokens": 8},
        },
    },
}
WEAK: dict[str, Any] = {
    **PROOF,
    "profile": "dull",
    "quality": "weak",
    "reasons": ["net win over the bare model is +0.03"],
    "choice": None,
}
WEAK["report"] = {**PROOF["report"], "judge_fallback": "openai could not be reached"}
DULL = {"id": "p-2", "name": "dull", "aliases": {}}
ALIAS = {"alias": "default", "targets": {"1": 1.0}}
JOB: dict[str, Any] = {
    "id": "01a215a3-550f-7f53-b899-2f78183c5f24",
    "profile_id": "p-1",
    "kind": "evaluate",
    "status": "running",
    "stage": "evaluation",
    "version": 1,
    "created_at": "2026-11-24T08:03:46.5Z",
    "error": None,
}
PAIR = {
    "position": 0,
    "query": "How do I start hiking?",
    "help_response": "Yay, walk!",
    "harm_response": "Do not.",
    "dropped": None,
}
USAGE = {
    "day": "2026-11-24",
    "profile_id": "p-1",
    "requests": 3,
    "prompt_tokens": 40,
    "completion_tokens": 50,
    "fit_tokens": 6000,
}
ACT = {
    "created_at": "2026-11-24T08:03:46.5Z",
    "action": "profile.promote",
    "subject": "profile",
    "subject_id": "p-1",
    "key_id": None,
    "address": None,
    "details": {"version": 1},
}
KEY = {
    "id": "k-1",
    "name": "app",
    "role": "member",
    "prefix": "az_1234",
    "revoked_at": None,
    "expires_at": None,
    "last_used_at": None,
    "last_used_from": None,
}
ASSIGNMENT = {"user": "ada", "profile": {"id": "p-1", "name": "cheerful"}, "alias": None, "version": 1}
ANSWERS: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/v1/profiles"): (200, {"data": [PROFILE], "next": None}),
    ("POST", "/v1/profiles"): (202, {"profile": PROFILE, "version": {"number": 1}, "job": {"id": "j-1"}}),
    ("GET", "/v1/profiles/p-1/versions/1"): (200, VERSION),
    ("GET", "/v1/profiles/p-2/versions/2"): (200, {**VERSION, "number": 2}),
    ("GET", "/v1/profiles/p-1/versions/1/report"): (200, PROOF),
    ("GET", "/v1/profiles/cheerful"): (200, PROFILE),
    ("GET", "/v1/profiles/cheerful/versions"): (200, {"data": [VERSION], "next": None}),
    ("GET", "/v1/profiles/cheerful/versions/1/report"): (200, PROOF),
    ("POST", "/v1/profiles/cheerful/versions/1/evaluate"): (202, {"job": {"id": "j-1", "version": 1}}),
    ("POST", "/v1/profiles/dull/versions"): (202, {"profile": DULL, "version": {"number": 2}, "job": {"id": "j-1"}}),
    ("GET", "/v1/profiles/dull"): (200, DULL),
    ("GET", "/v1/profiles/dull/versions"): (
        200,
        {"data": [{"number": 3, "state": "failed"}, {"number": 2, "state": "ready"}], "next": None},
    ),
    ("GET", "/v1/profiles/p-2/versions/2/report"): (200, WEAK),
    ("GET", "/v1/profiles/dull/versions/2/report"): (200, WEAK),
    ("POST", "/v1/profiles/dull/promote"): (
        409,
        {"error": {"code": "version_weak", "message": "version 2 of profile 'dull' is weak", "details": {"number": 2}}},
    ),
    ("GET", "/v1/jobs/j-1"): (200, {**JOB, "id": "j-1", "status": "succeeded"}),
    ("GET", "/v1/profiles/chearful"): (
        404,
        {
            "error": {
                "code": "not_found",
                "message": "profile chearful does not exist",
                "details": {"kind": "profile", "ref": "chearful"},
                "request_id": "req_1",
            }
        },
    ),
    ("POST", "/v1/profiles/dull/versions/2/evaluate"): (202, {"job": {"id": "j-2", "version": 2}}),
    ("GET", "/v1/jobs/j-2"): (
        200,
        {**JOB, "id": "j-2", "status": "failed", "error": {"code": "out_of_memory", "message": "no room"}},
    ),
    ("GET", "/v1/profiles/cheerful/aliases"): (200, {"data": [ALIAS], "next": None}),
    ("PUT", "/v1/profiles/cheerful/aliases/default"): (
        200,
        {"alias": "default", "targets": {"1": 0.9, "2": 0.1}},
    ),
    ("PUT", "/v1/profiles/cheerful/aliases/beta"): (200, {"alias": "beta", "targets": {"2": 1.0}}),
    ("DELETE", "/v1/profiles/cheerful/aliases/beta"): (204, ""),
    ("DELETE", "/v1/profiles/cheerful"): (204, ""),
    ("POST", "/v1/profiles/cheerful/versions/1/archive"): (200, {**VERSION, "state": "archived"}),
    ("POST", "/v1/profiles/cheerful/rollback"): (200, ALIAS),
    ("GET", "/v1/profiles/cheerful/versions/1"): (200, {**VERSION, "spec": {"persona": {"preferred": "cheerful"}}}),
    ("GET", "/v1/profiles/cheerful/versions/1/pairs"): (200, {"data": [PAIR], "next": None}),
    ("POST", "/v1/compare"): (
        200,
        {"columns": [{"name": "base", "text": "Walk."}, {"name": "cheerful", "text": "Yay, walk!"}]},
    ),
    ("POST", "/v1/chat/completions"): (200, {"choices": [{"message": {"content": "Hello"}}]}),
    ("GET", "/v1/usage"): (200, {"data": [USAGE], "next": None}),
    ("GET", "/v1/audit"): (200, {"data": [ACT], "next": None}),
    ("GET", "/v1/keys"): (200, {"data": [KEY], "next": None}),
    ("POST", "/v1/keys"): (201, {**KEY, "secret": "az_secret"}),
    ("DELETE", "/v1/keys/k-1"): (200, KEY),
    ("POST", "/v1/keys/k-1/rotate"): (201, {**KEY, "secret": "az_secret"}),
    ("PUT", "/v1/users/ada/profile"): (200, ASSIGNMENT),
    ("GET", "/v1/users/ada/profile"): (200, ASSIGNMENT),
    ("DELETE", "/v1/users/ada/profile"): (204, ""),
    ("POST", "/v1/jobs/j-1/cancel"): (200, {**JOB, "status": "cancelled"}),
    ("GET", "/v1/jobs"): (200, {"data": [JOB], "next": None}),
    ("GET", "/v1/profiles/empty"): (200, {"name": "empty", "aliases": {}}),
    ("GET", "/v1/profiles/empty/versions"): (200, {"data": [{"number": 1, "state": "pending"}], "next": None}),
    ("POST", "/v1/profiles/cheerful/promote"): (
        409,
        {"error": {"code": "version_not_ready", "message": "version 2 is pending", "details": {}}},
    ),
    ("GET", "/v1/models/base%40cheerful"): (200, {"id": "nano@cheerful", "parent": "nano"}),
    ("GET", "/v1/models/base%40cheerful%231"): (200, {"id": "nano@cheerful#1", "parent": "nano"}),
    ("GET", "/v1/models"): (200, {"data": [{"id": "nano"}, {"id": "nano@cheerful", "parent": "nano"}]}),
}
#: An end user whose answer never ends.
SLOW = "/v1/users/slow/chat/completions"
EVENTS: dict[str, list[dict[str, Any]]] = {
    "/v1/jobs/j-1/events": [
        {"status": "running", "stage": "responses", "progress": {"responses": {"done": 4, "total": 4}}},
        {"status": "succeeded", "stage": "evaluation", "progress": {"evaluation": {"done": 1, "total": 1}}},
    ],
    "/v1/jobs/j-2/events": [{"status": "failed", "stage": "responses"}],
    "/v1/chat/completions": [{"choices": [{"delta": {"content": "Hel"}}]}, {"choices": [{"delta": {"content": "lo"}}]}],
    "/v1/users/ben/chat/completions": [
        {"choices": [{"delta": {"content": "Hi"}}], "alignez": {"profile": "dull", "reason": "no_default_version"}}
    ],
}


@contextmanager
def serving() -> Iterator[tuple[str, list[Request]]]:
    """A server with fixed answers: its URL, and the requests that it got."""
    seen: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            path, _, query = self.path.partition("?")
            seen.append((self.command, path, json.loads(self.rfile.read(length)) if length else None))
            if self.headers["authorization"] != "Bearer good":
                return self._send(401, {"error": {"code": "unauthenticated", "message": "no"}})
            body = seen[-1][2]
            if path == SLOW:
                return self._begin_a_stream()
            if path in EVENTS and (body is None or body.get("stream")):
                text = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS[path]) + "data: [DONE]\n\n"
                return self._send(200, text, "text/event-stream")
            if "format=html" in query:
                return self._send(200, f"<!doctype html>{path}", "text/html")
            status, body = ANSWERS.get(
                (self.command, path), (404, {"error": {"code": "not_found", "message": f"no {path}"}})
            )
            return self._send(status, body)

        def _begin_a_stream(self) -> None:
            """One chunk, then nothing until the client leaves."""
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(f"data: {json.dumps(EVENTS['/v1/chat/completions'][0])}\n\n".encode())
            self.wfile.flush()
            self.connection.recv(1)

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
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", seen
    http.shutdown()
    http.server_close()
    thread.join()
