"""The OpenAPI file: what FastAPI finds, plus the errors that every call can give."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from api.http.errors import is_openai_path

DESCRIPTION = """
Personalises an open-weight language model **without training**. Describe a behaviour, wait for its job, and name the
profile in any OpenAI client: `model="persona-nano@cheerful"`.

Send `Authorization: Bearer <key>` with every call. Errors are `{"error": {"code", "message", "details",
"request_id"}}`; under `/v1/chat`, `/v1/completions` and `/v1/models` they are OpenAI's. Lists are
`{"data": […], "next": cursor or null}`. `Idempotency-Key` makes a POST that changes something safe to repeat.
"""

TAGS: list[dict[str, Any]] = [
    {"name": "generation", "description": "OpenAI's endpoints, personalised, and comparisons."},
    {"name": "profiles", "description": "Named behaviours."},
    {"name": "versions", "description": "Immutable fits of a profile, with their evidence."},
    {"name": "aliases", "description": "Which version is in use: promotion, rollback, canaries."},
    {"name": "users", "description": "Which end user gets which profile."},
    {"name": "jobs", "description": "Fits in progress."},
    {"name": "account", "description": "Your tenant's keys, usage and audit log; role admin."},
    {"name": "admin", "description": "All tenants; role operator."},
    {"name": "health", "description": "For orchestrators; no key needed."},
]


_OURS = {
    "type": "object",
    "title": "Error",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "details", "request_id"],
            "properties": {
                "code": {"type": "string", "description": "stable; for programs"},
                "message": {"type": "string", "description": "for people"},
                "details": {"type": "object", "additionalProperties": True},
                "request_id": {"type": "string", "description": "finds the request in the logs"},
            },
        }
    },
}
_OPENAIS = {
    "type": "object",
    "title": "OpenAIError",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "details": {"type": "object", "additionalProperties": True},
                "request_id": {"type": "string"},
            },
        }
    },
}
_MEANINGS = {
    400: "Malformed, unsupported, or over the model's context",
    401: "No valid key",
    403: "The key's role may not do this",
    404: "Not found, or owned by another tenant",
    405: "Method not allowed",
    409: "Conflicts with the current state",
    413: "Body too large",
    415: "The body is not declared as JSON",
    422: "Malformed: names the field and its limit",
    429: "Over quota, or the queue is full; see Retry-After",
    500: "The server failed",
    503: "Database, broker or model unavailable; see Retry-After",
}


def describe(app: FastAPI) -> None:
    """Makes `app.openapi()` (and so `/openapi.json` and `/docs`) tell the errors as they are rendered."""
    plain = app.openapi

    def with_errors() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                components.pop(name, None)
            components["Error"], components["OpenAIError"] = _OURS, _OPENAIS
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    _add_errors(path, operation)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = with_errors  # type: ignore[method-assign]


def _add_errors(path: str, operation: dict[str, Any]) -> None:
    """The statuses a call can give; which ones a caller meets depends on what they send."""
    openai = is_openai_path(path.replace("{user}", "user").replace("{name}", "name"))
    statuses = [400, 413, 500]
    if operation.get("security"):
        statuses += [401, 404, 409, 429, 503]
    if path.startswith("/admin"):
        statuses.append(403)
    if operation.get("requestBody"):
        statuses.append(415)
    if not openai and (operation.get("parameters") or operation.get("requestBody")):
        statuses.append(422)
    responses = operation["responses"]
    responses.pop("422", None)
    name = "OpenAIError" if openai else "Error"
    for status in sorted(statuses):
        responses.setdefault(
            str(status),
            {
                "description": _MEANINGS[status],
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
            },
        )
