"""Translates pydantic's errors about a request for its caller: the field's path, and the reason.

For a union pydantic reports the errors of every branch. This module reports the branch whose types fit the value best,
so that an unknown part of a message's content is not answered with "should be a valid string".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Maximum number of errors examined: a list of a million wrong numbers has a million.
_MOST = 10_000
#: Maximum number of findings reported, and maximum length of a value and a name in them.
_REPORTED = 20
_SHOWN_VALUE = 60
_SHOWN_NAME = 200
_RANGE_ERRORS = ("greater_than_equal", "less_than_equal", "greater_than", "less_than", "literal_error")
#: Errors of a string in place of a number or a boolean.
_PARSING_ERRORS = ("int_parsing", "float_parsing", "bool_parsing")


@dataclass(frozen=True)
class Finding:
    """An error in a request.

    Args:
        field: a path in the body such as `queries.3.text`, "body" for the whole body, or the name of a parameter or
            header. place: "body", "path", "query", "header" or "cookie".
    """

    field: str
    message: str
    place: str

    def __str__(self) -> str:
        where = "" if self.place == "body" else f" ({self.place})"
        return f"{self.field}{where}: {self.message}"


def findings(errors: Sequence[Mapping[str, Any]], body: object) -> list[Finding]:
    """The errors of a request in pydantic's order, at most 20.

    Args:
        errors: of a `RequestValidationError`. body: the parsed body, which distinguishes keys from names of branches.
    """
    located = [_locate(i, error, body) for i, error in enumerate(errors[:_MOST])]
    meant = sorted(_meant(located), key=lambda each: each.order)
    return [Finding(each.field, each.message, each.where) for each in meant[:_REPORTED]]


@dataclass(frozen=True)
class _Located:
    """One of pydantic's errors.

    Args:
        where: "body", "query", … path: the keys and indices below it.
        branches: the unions along the path, outermost first: the length of the path up to it, and the branch.
        wrong_type: the value has another type. wrong_name: it is none of the allowed literals, which often distinguish
            branches.
    """

    order: int
    where: str
    path: tuple[Any, ...]
    branches: tuple[tuple[int, str], ...]
    message: str
    wrong_type: bool
    wrong_name: bool

    @property
    def field(self) -> str:
        return ".".join(map(str, self.path))[:_SHOWN_NAME] or self.where


def _locate(order: int, error: Mapping[str, Any], body: object) -> _Located:
    where, *rest = error["loc"]
    path: list[Any] = []
    branches: list[tuple[int, str]] = []
    if where != "body":
        path = rest[:1]
        rest = []
    for i, part in enumerate(rest):
        inner = _step(body, part)
        if inner is not _NOTHING:
            path.append(part)
            body = inner
        elif error["type"] == "missing" and i == len(rest) - 1:
            path.append(part)
        else:
            branches.append((len(path), str(part)))
    named = error.get("ctx", {}).get("field") if error["type"] == "field_error" else None
    if named is not None:
        path.append(named)
    wrong_name = error["type"] == "literal_error"
    return _Located(order, where, tuple(path), tuple(branches), _message(error), _is_wrong_type(error), wrong_name)


_NOTHING = object()


def _step(value: object, part: object) -> object:
    """The value at a key or index; `_NOTHING` if there is none, because the part then names a union's branch."""
    if isinstance(value, dict):
        return value.get(part, _NOTHING)
    if isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value):
        return value[part]
    return _NOTHING


def _meant(found: Sequence[_Located], level: int = 0) -> Iterator[_Located]:
    """The errors of the best branch of each union; unions above `level` are resolved already."""
    unions: dict[tuple[Any, ...], dict[str, list[_Located]]] = {}
    for each in found:
        if len(each.branches) <= level:
            yield each
        else:
            at, branch = each.branches[level]
            unions.setdefault(each.path[:at], {}).setdefault(branch, []).append(each)
    for place, branches in unions.items():
        yield from _best([list(_meant(errors, level + 1)) for errors in branches.values()], len(place))


def _best(branches: Sequence[list[_Located]], depth: int) -> list[_Located]:
    """The errors of the best branch: by the type of the value itself, then of its content, then the fewest errors."""

    def unlike(errors: list[_Located]) -> tuple[bool, int, int]:
        here = any(error.wrong_type and len(error.path) == depth for error in errors)
        return here, sum(error.wrong_type or error.wrong_name for error in errors), len(errors)

    least = min(map(unlike, branches))
    best = [errors for errors in branches if unlike(errors) == least]
    firsts = [errors[0] for errors in best]
    if any(first.path != firsts[0].path for first in firsts):
        # The branch that accepts most of the value fails furthest into it.
        return max(best, key=lambda errors: [(isinstance(part, str), part) for part in errors[0].path])
    if len(best) == 1:
        return best[0]
    messages = list(dict.fromkeys(first.message for first in firsts))
    said = " or ".join([messages[0], *(message.removeprefix("Input should be ") for message in messages[1:])])
    return [replace(firsts[0], message=said)]


def _is_wrong_type(error: Mapping[str, Any]) -> bool:
    """True if the value has another JSON type than this branch accepts."""
    kind, value = str(error["type"]), error.get("input")
    if kind == "literal_error":
        return isinstance(value, str) != str(error["ctx"]["expected"]).startswith("'")
    return kind.endswith("_type") or (kind in _PARSING_ERRORS and isinstance(value, str))


def _message(error: Mapping[str, Any]) -> str:
    kind, value, ctx = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "missing" and error["loc"] == ("body",):
        return "a JSON object is required"
    if kind == "string_unicode":
        return "must be valid Unicode, without lone surrogates (U+D800 to U+DFFF)"
    if kind in ("too_long", "too_short") and isinstance(value, str):
        most = "most" if kind == "too_long" else "least"
        return f"String should have at {most} {ctx.get('max_length', ctx.get('min_length'))} characters"
    short = isinstance(value, str | int | float) and not isinstance(value, bool) and len(str(value)) <= _SHOWN_VALUE
    got = f", got {value!r}" if short and kind in _RANGE_ERRORS else ""
    return str(error["msg"]).removeprefix("Value error, ")[:500] + got
