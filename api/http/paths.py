"""Error messages for unknown paths and methods."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi import FastAPI, Request, routing

_DOCS = "/docs"
_VERSION = "/v1"
_SHOWN_PATH = 200
#: Minimum similarity at which a segment counts as a misspelling of another one.
_ALIKE = 0.75


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """The methods of all routes that match a path, sorted."""
    found = [route.methods or set() for route in _routes(app) if route.path_regex.match(path)]
    return sorted(set().union(*found))


def describe_unknown(request: Request) -> tuple[str, dict[str, object]]:
    """Message and details for an unknown path: the nearest paths that exist."""
    app: FastAPI = request.app
    path = request.url.path
    asked = [part for part in path.split("/") if part]
    served = [(route.path_format or "").strip("/").split("/") for route in _routes(app)]
    depth = max(_shared(parts, asked) for parts in served)
    near = [parts for parts in served if _shared(parts, asked) == depth]
    prefix = "/" + "/".join(near[0][:depth])
    below = sorted({parts[depth] for parts in near if len(parts) > depth})
    guess = difflib.get_close_matches(asked[depth], below, 1, _ALIKE) if len(asked) > depth else []
    message = f"unknown path {path[:_SHOWN_PATH]}"
    if allowed_methods(app, _VERSION + path):
        message += f"; did you mean {_VERSION}{path}?"
    elif len(asked) == depth and any(len(parts) == depth for parts in near):
        message += f"; did you mean {prefix}, without a slash at the end?"
    elif guess:
        message += f"; did you mean {prefix.rstrip('/')}/{guess[0]}?"
    elif below:
        message += f"; paths below {prefix}: {', '.join(below)}"
    if b"%2f" in (request.scope.get("raw_path") or b"").lower():
        message += "; an id in a path cannot contain '/', nor its escape %2F"
    if any(route.path == _DOCS for route in _routes(app)):
        message += f" ({_DOCS} describes the whole API)"
    return message, {"nearest": prefix, "below": below}


def _routes(app: FastAPI) -> Iterator[Any]:
    # FastAPI 0.136, which vLLM pins, copies a router's routes into the app; later ones keep them in a tree.
    flat: Callable[[Any], Iterable[Any]] = getattr(routing, "iter_route_contexts", iter)
    return (r for r in flat(app.routes) if getattr(r, "path_format", None) and getattr(r, "methods", None))


def _shared(served: list[str], asked: list[str]) -> int:
    """Number of leading segments that a route's path and a requested path have in common."""
    count = 0
    for part, given in zip(served, asked, strict=False):
        if part != given and not part.startswith("{"):
            break
        count += 1
    return count
