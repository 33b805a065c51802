"""Text and numbers that Postgres and JSON can hold."""

from __future__ import annotations

import math
from typing import Any


def unstorable(text: str) -> str | None:
    """The reason why Postgres cannot store a text, to follow a field's name; None: it can."""
    if "\x00" in text:
        return "must not contain NUL bytes"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode, without lone surrogates (U+D800 to U+DFFF)"
    return None


def storable(text: str) -> str:
    """The text without NUL characters and lone surrogates, which Postgres cannot store."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def json_safe(value: Any) -> Any:
    """The value with NaN and infinities as None, and all texts storable."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value
