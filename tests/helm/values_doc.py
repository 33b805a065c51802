"""The table of values in helm/README.md, made from the `# --` comments of values.yaml.

`python -m tests.helm.values_doc` writes it anew; a test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm"
BEGIN = "<!-- values: begin (python -m tests.helm.values_doc) -->"
END = "<!-- values: end -->"

_KEY = re.compile(r"^( *)([A-Za-z][\w-]*):(.*)$")


@dataclass(frozen=True)
class Value:
    """One documented value of values.yaml: its dotted path, default and comment."""

    path: str
    default: Any
    comment: str


def leaves(values: dict[str, Any], documented: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value as (path, default); a mapping that has a comment of its own is one value."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in documented:
            yield from leaves(value, documented, f"{path}.")
        else:
            yield path, value


def comments(text: str) -> dict[str, str]:
    """Comment by dotted path, for the keys that a `# --` comment stands directly above."""
    found: dict[str, str] = {}
    trail: list[tuple[int, str]] = []
    pending: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            pending = [stripped[5:]]
        elif stripped.startswith("#") and pending:
            pending.append(stripped[1:].strip())
        elif match := _KEY.match(line):
            indent, key = len(match[1]), match[2]
            trail = [(depth, name) for depth, name in trail if depth < indent] + [(indent, key)]
            if pending:
                found[".".join(name for _, name in trail)] = " ".join(pending)
            pending = []
        else:
            pending = []
    return found


def documented_values(text: str) -> list[Value]:
    """All values of a values.yaml; one without a comment has an empty one."""
    said = comments(text)
    return [Value(path, default, said.get(path, "")) for path, default in leaves(yaml.safe_load(text), set(said))]


def table(text: str) -> str:
    """The Markdown table of a values.yaml."""
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for value in documented_values(text):
        default = json.dumps(value.default, ensure_ascii=False) if value.default != "" else '""'
        rows.append(f"| `{value.path}` | `{default}` | {value.comment.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def with_table(readme: str, text: str) -> str:
    """The README with its table made anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(text)}\n{END}{after}"


def main() -> None:
    """Write the table."""
    readme = CHART / "README.md"
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), values), encoding="utf-8")


if __name__ == "__main__":
    main()
