"""The only map from errors to HTTP statuses, and the two envelopes of error responses.

Ours is `{"error": {"code", "message", "details", "request_id"}}`. The OpenAI paths use OpenAI's
`{"error": {"message", "type", "param", "code"}}`, so that OpenAI clients raise their own exceptions. No response
contains a stack trace or a driver's message: those are logged under the request id that the response names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from alignez_core import errors as core
from api.http.malformed import findings
from api.http.paths import allowed_methods, describe_unknown
from profiles import errors as stored

log = structlog.get_logger("api")

_OPENAI_PATH = re.compile(r"/v1/(?:users/[^/]+/)?(?:chat|completions|models|embeddings)(?:/|$)")
RETRY_AFTER_S = 2


@dataclass(frozen=True)
class Problem:
    """An error as a caller sees it, independent of the envelope."""

    status: int
    code: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    param: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class ApiError(Exception):
    """An error of the HTTP layer: a malformed parameter, an unsupported option, a missing role."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.problem = Problem(
            status, code, message, {"field": param} if param else {}, param=param, retry_after_s=retry_after_s
        )


class BodyTooLarge(HTTPException):
    """The request's body is over the limit. An HTTPException, because FastAPI turns any other error into a 400."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is over the limit of {limit} bytes")
        self.limit = limit


class BodyTooSlow(HTTPException):
    """The request's body did not arrive in time; an HTTPException for the same reason."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(408, f"the request body did not arrive within {limit_s:g} s")
        self.limit_s = limit_s


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: an error may quote a field name that contains a lone surrogate, which UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


def install_handlers(app: FastAPI) -> None:
    """Renders every expected error by `problem_of` in one of the two envelopes; `RequestContext` handles all others."""
    for kind in (RequestValidationError, HTTPException, core.AlignezError, stored.ProfilesError, ApiError):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    problem = _of_route(request, error) or problem_of(error)
    if problem.status == 503:
        log.warning("unavailable", code=problem.code, reason=str(error.__cause__ or error)[:500])
    elif problem.status >= 500:
        log.error("request_failed", code=problem.code, exc_info=error)
    return render_error(request.url.path, problem, request.state.request_id)


def _of_route(request: Request, error: Exception) -> Problem | None:
    """The problem of a request that matches no route, or whose body is not declared as JSON; None for all others."""
    if isinstance(error, RequestValidationError) and isinstance(error.body, bytes):
        kind = request.headers.get("content-type", "")[:_SHOWN_TYPE]
        message = f"send the JSON body with the header 'Content-Type: application/json', got {kind!r}"
        return Problem(415, _HTTP_CODES[415], message, {"field": "Content-Type"}, "Content-Type")
    if isinstance(error, HTTPException) and error.status_code == 404:
        message, details = describe_unknown(request)
        return Problem(404, _HTTP_CODES[404], message, details)
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = ", ".join(allowed_methods(request.app, request.url.path))
        message = f"this path does not support {request.method}; it supports {allowed}"
        return Problem(405, _HTTP_CODES[405], message, {"allowed": allowed}, headers={"allow": allowed})
    return None


def problem_of(error: BaseException) -> Problem:
    """The problem that a caller sees; an unexpected error is a 500 without details."""
    if isinstance(error, ApiError):
        return error.problem
    if isinstance(error, RequestValidationError):
        return _malformed(error)
    if isinstance(error, BodyTooLarge):
        return Problem(413, "body_too_large", str(error.detail), {"limit_bytes": error.limit})
    if isinstance(error, BodyTooSlow):
        # The rest of the body may still arrive, and must not be parsed as the next request.
        details, headers = {"limit_s": error.limit_s}, {"connection": "close"}
        return Problem(408, "body_too_slow", str(error.detail), details, headers=headers)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, _HTTP_CODES.get(error.status_code, "http_error"), str(error.detail))
    if isinstance(error, core.AlignezError):
        return _of_core(error)
    if isinstance(error, stored.ProfilesError):
        return _of_profiles(error)
    return _INTERNAL


def is_openai_path(path: str) -> bool:
    """True if errors of this path use OpenAI's envelope."""
    return _OPENAI_PATH.match(path) is not None


def render_error(path: str, problem: Problem, request_id: str) -> JSONResponse:
    """The response for a problem, in the envelope of the path."""
    openai = is_openai_path(path)
    if openai and problem.status == 422:
        problem = replace(problem, status=400)  # OpenAI answers malformed bodies with 400
    body = openai_body(problem, request_id) if openai else own_body(problem, request_id)
    headers = dict(problem.headers)
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(problem.retry_after_s)))
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return AsciiJSONResponse(body, problem.status, headers)


def own_body(problem: Problem, request_id: str) -> dict[str, Any]:
    """Our envelope."""
    return {
        "error": {
            "code": problem.code,
            "message": problem.message,
            "details": dict(problem.details),
            "request_id": request_id,
        }
    }


def openai_body(problem: Problem, request_id: str) -> dict[str, Any]:
    """OpenAI's envelope; its clients ignore the additional `details` and `request_id`."""
    if problem.status >= 500:
        kind = "server_error"
    elif problem.status == 429:
        kind = "rate_limit_error"
    elif problem.status == 401:
        kind = "authentication_error"
    elif problem.status == 403:
        kind = "permission_error"
    else:
        kind = "invalid_request_error"
    return {
        "error": {
            "message": problem.message,
            "type": kind,
            "param": problem.param,
            "code": problem.code,
            "details": dict(problem.details),
            "request_id": request_id,
        }
    }


_SHOWN_TYPE = 100
_INTERNAL = Problem(500, "internal_error", "Internal error; the server logged its cause under this request id.")
_HTTP_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}

_CORE_STATUS: tuple[tuple[type[core.AlignezError], int], ...] = (
    (core.InvalidInput, 422),
    (core.TooFewSamples, 422),
    (core.LayerOutOfRange, 422),
    (core.ModelMismatch, 409),
    (core.DegenerateEmbeddings, 409),
    (core.ContextTooLong, 400),
    (core.RequestTooLarge, 400),
    (core.EngineOverloaded, 429),
    (core.EngineClosed, 503),
    (core.OutOfMemory, 503),
    (core.ModelNotFound, 503),
    (core.UnknownArchitecture, 503),
)


_STORED_STATUS: tuple[tuple[type[stored.ProfilesError], int], ...] = (
    (stored.NotFound, 404),
    (stored.Conflict, 409),
    (stored.QuotaExceeded, 429),
    (stored.InvalidSpec, 422),
    (stored.Unauthenticated, 401),
    (stored.Forbidden, 403),
    (stored.DatabaseUnavailable, 503),
    (stored.BrokerUnavailable, 503),
)


def _of_core(error: core.AlignezError) -> Problem:
    status = next((code for kind, code in _CORE_STATUS if isinstance(error, kind)), 500)
    details = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float)}
    param = error.field if isinstance(error, core.InvalidInput) else None
    if isinstance(error, core.InvalidInput):
        details = {"field": error.field}
    elif isinstance(error, core.TooFewSamples):
        param = "fit.neighbors"
    elif isinstance(error, core.LayerOutOfRange):
        param = "fit.layers"
    message = str(error)
    if status == 500 or isinstance(error, core.ModelNotFound | core.UnknownArchitecture):
        message, details = "The model cannot serve this request.", {}  # its text names the server's directories
    retry = float(RETRY_AFTER_S) if status in (429, 503) else None
    return Problem(status, error.code, message, details, param, retry)


def _malformed(error: RequestValidationError) -> Problem:
    """422 for pydantic's errors: the first one is the message, all of them are in the details."""
    errors = error.errors()
    if errors and errors[0]["type"] == "json_invalid":
        reason, at = errors[0]["ctx"]["error"], errors[0]["loc"][-1]
        return Problem(422, "invalid_json", f"the request body is not valid JSON: {reason} at character {at}")
    found = findings(errors, error.body)
    first = found[0]
    details = {
        "field": first.field,
        "errors": [{"field": each.field, "in": each.place, "message": each.message} for each in found],
    }
    code = errors[0].get("ctx", {}).get("code", "invalid_request")  # of `field_error`
    return Problem(422, code, str(first), details, param=first.field)


def _of_profiles(error: stored.ProfilesError) -> Problem:
    status = next((code for kind, code in _STORED_STATUS if isinstance(error, kind)), 500)
    if status == 500:
        return _INTERNAL
    details: dict[str, Any] = {}
    for name, value in vars(error).items():
        if isinstance(value, str | int | float):
            details[name] = value
        elif isinstance(value, UUID):
            details[name] = str(value)
        elif isinstance(value, tuple):
            details[name] = [str(item) for item in value]
    param = error.field if isinstance(error, stored.InvalidSpec) else None
    if isinstance(error, stored.VersionNotReady | stored.NoDefaultVersion) and error.job_id is not None:
        details["job"] = f"/v1/jobs/{error.job_id}"
    retry = details.pop("retry_after_s", None)
    return Problem(status, error.code, str(error), details, param, retry)
