"""Text and numbers that Postgres and JSON can hold."""

from __future__ import annotations

import math
from typing import Any


def unstorable(text: str) -> str | None:
    """The reason why Postgres does not store this text, to be put after a field's name; None: it does."""
    if "\x00" in text:
        return "must not contain NUL bytes"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode, without lone surrogates (U+D800 to U+DFFF)"
    return None


def storable(text: str) -> str:
    """The text without NUL characters and lone surrogates, which Postgres does not store."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def json_safe(value: Any) -> Any:
    """The same with NaN and infinities as None, and every text storable."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value
