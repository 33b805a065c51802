"""Reads a profile's spec from files and `NAME=VALUE` options; errors name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cli.errors import CliError, usage_error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: CliError."""
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CliError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CliError(f"{path} is not a JSON object: write the body of `POST /v1/profiles`")
    return content


def read_queries(path: Path) -> list[str | dict[str, Any]]:
    """Queries, one per line: plain text, or a JSON object with `text` and its own phrases. Raises: CliError."""
    queries: list[str | dict[str, Any]] = []
    for number, line in _lines(path):
        if not line.startswith("{"):
            queries.append(line)
            continue
        queries.append(_object(path, number, line, ("text",), ("preferred", "dispreferred")))
    if not queries:
        raise CliError(f"{path} has no queries: write one per line")
    return queries


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Ground-truth pairs, one JSON object per line. Raises: CliError."""
    fields = ("query", "preferred", "dispreferred")
    pairs = [_object(path, number, line, fields, ()) for number, line in _lines(path)]
    if not pairs:
        raise CliError(f"{path} has no pairs: write one JSON object per line")
    return pairs


def settings_of(assignments: Sequence[str]) -> dict[str, Any]:
    """`["method=alignez", "neighbors=5"]` as a mapping; values are parsed as JSON if they are JSON.

    Raises: CliError: an assignment without `=`.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise usage_error(f"--fit {assignment!r}: write NAME=VALUE, for example --fit method=distill")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings[name.strip()] = value
    return settings


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CliError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _object(path: Path, number: int, line: str, needed: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CliError(f"{path}, line {number}: not JSON: {error}") from None
    known = {*needed, *optional}
    if not isinstance(content, dict) or not set(needed) <= set(content) <= known:
        wanted = ", ".join(needed) + (f" and optionally {', '.join(optional)}" if optional else "")
        raise CliError(f"{path}, line {number}: an object with {wanted} is needed")
    for name, value in content.items():
        if not isinstance(value, str):
            raise CliError(f"{path}, line {number}: {name} must be text, got {json.dumps(value)}")
    return content
