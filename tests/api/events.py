"""Server-sent events of generation and of jobs, parsed, and the `alignez` field of an answer without a profile."""

from __future__ import annotations

import json
from typing import Any

BARE = dict.fromkeys(("profile", "version", "sha256", "neighbors", "edit_ratio", "prefix_tokens", "reason"))


def chunks(text: str) -> list[dict[str, Any]]:
    """The JSON of each event but the last, which must be [DONE]."""
    blocks = text.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def parse(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of each named event."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found
