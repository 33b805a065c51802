"""Writes the module diagrams of docs/architecture.md from the code's imports: `make diagram`."""

from __future__ import annotations

import re
from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("architecture.md")
PACKAGES = ("api", "worker", "cli", "profiles", "telemetry", "alignez_core", "migrations")
_BLOCK = re.compile(r"(<!-- diagram (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render() -> str:
    """The page with its diagrams drawn anew."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)

    def draw(match: re.Match[str]) -> str:
        return f"{match[1]}{_mermaid(graph, match[2])}{match[3]}"

    return _BLOCK.sub(draw, PAGE.read_text(encoding="utf-8"))


def _mermaid(graph: grimp.ImportGraph, package: str) -> str:
    rooms = list(PACKAGES) if package == "all" else sorted(graph.find_children(package))
    inside = {room: {room} | graph.find_descendants(room) for room in rooms}
    lines = []
    for room in rooms:
        used = {name for module in inside[room] for name in graph.find_modules_directly_imported_by(module)}
        lines += [f"  {_short(room)} --> {_short(other)}" for other in rooms if other != room and used & inside[other]]
    return "\n".join(["```mermaid", "graph LR", *sorted(lines), "```", ""])


def _short(room: str) -> str:
    return room.rpartition(".")[2]


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
