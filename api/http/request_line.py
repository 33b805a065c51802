"""Checks of a request's path and query that every route depends on."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from fastapi import Request
from fastapi.dependencies.models import Dependant
from starlette.exceptions import HTTPException

from api.http.errors import ApiError

_SHOWN_NAME = 100


async def refuse_undecodable(request: Request) -> None:
    """Refuses a path or query that is not UTF-8: servers replace such bytes, which would make different ids equal.

    Raises: HTTPException: 400.
    """
    for part, raw in (("path", request.scope.get("raw_path") or b""), ("query", request.scope["query_string"])):
        if b"%" in raw:
            try:
                unquote_to_bytes(raw).decode()
            except UnicodeDecodeError:
                raise HTTPException(400, f"the {part} is not valid UTF-8 after its %XX escapes are decoded") from None


async def refuse_undeclared(request: Request) -> None:
    """Refuses a misspelt query parameter, which would otherwise mean the default in silence.

    Routes without query parameters ignore them, because some clients add their own (`?api-version=…`).

    Raises: ApiError: 400.
    """
    if not request.scope["query_string"]:
        return
    known = _query_names(request.scope["route"].dependant)
    unknown = next((name for name in request.query_params if name not in known), None)
    if known and unknown is not None:
        raise ApiError(
            400, "unknown_parameter", f"{unknown[:_SHOWN_NAME]} (query): there is no such parameter; there are "
            f"{', '.join(known)}", param=unknown[:_SHOWN_NAME],
        )  # fmt: skip


def _query_names(dependant: Dependant) -> list[str]:
    """Names that a route and its dependencies declare."""
    own = [field.alias for field in dependant.query_params]
    return sorted({*own, *(name for below in dependant.dependencies for name in _query_names(below))})
