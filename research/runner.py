"""What experiments share: options, rows that survive an interruption, and progress.

An experiment makes one row (a JSON object) per cell of its grid. After each cell its JSON file is rewritten; started
again with the same settings, it takes finished cells from the file. The texts of an unfinished cell are kept as well,
because nearly all of a cell's time goes into them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignez_core.fit_run import FitEvent, TextChunk

Row = dict[str, Any]

#: Seconds between two lines of progress where the output is not a terminal.
_QUIET_S = 20.0


class Results:
    """The rows of one experiment, in a JSON file.

    Args:
        path: of the file; written as `{"settings": …, "rows": […]}`.
        settings: everything that a row depends on; rows of other settings are not mixed with these.
        total: number of cells, for the progress lines; 0: unknown.
    Raises: SystemExit: the file holds rows of other settings, or is not such a file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], total: int = 0) -> None:
        self.path, self.total = path, total
        self.settings: Row = json.loads(json.dumps(dict(settings)))
        self.rows: list[Row] = []
        self._made = 0
        self._began = time.monotonic()
        if path.exists():
            self.rows = self._stored()
            if self.rows:
                print(f"{len(self.rows)} finished rows in {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)

    def row(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> Row:
        """The row of a cell: the stored one, or `make()` with the key in front, which is then stored."""
        stored = self.find(key)
        if stored is not None:
            return stored
        wanted = json.loads(json.dumps(dict(key)))
        began = time.monotonic()
        row = {**wanted, **json.loads(json.dumps(make())), "seconds": round(time.monotonic() - began, 1)}
        self.rows.append(row)
        self._write()
        self._made += 1
        print(f"{self._place()}{' '.join(map(str, wanted.values()))}: {row['seconds']:g} s{self._left()}", flush=True)
        return row

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """The stored row of a cell."""
        wanted = json.loads(json.dumps(dict(key)))
        return next((row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())), None)

    def _stored(self) -> list[Row]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            settings, rows = stored["settings"], list(stored["rows"])
        except (ValueError, TypeError, KeyError) as error:
            raise SystemExit(f"{self.path} holds no results; name another folder or remove it: {error}") from error
        differ = sorted(k for k in {*settings, *self.settings} if settings.get(k) != self.settings.get(k))
        if differ and rows:
            named = ", ".join(f"{k} {settings.get(k)!r}, now {self.settings.get(k)!r}" for k in differ)
            raise SystemExit(f"{self.path} holds results of other settings ({named}); name another --out or remove it")
        return rows

    def _write(self) -> None:
        """Replaces the file at once, so that a reader or a restart never meets half of it; one row per line."""
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in self.rows)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(f'{{"settings": {json.dumps(self.settings)},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")
        os.replace(part, self.path)

    def _place(self) -> str:
        return f"[{len(self.rows)}/{self.total}] " if self.total else ""

    def _left(self) -> str:
        missing = self.total - len(self.rows)
        if missing <= 0:
            return ""
        minutes = (time.monotonic() - self._began) / self._made * missing / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


class Texts:
    """Texts of unfinished fits and comparisons, one JSON line per chunk; also their progress callback."""

    def __init__(self, path: Path, what: str) -> None:
        self.chunks: list[TextChunk] = []
        self._path, self._what, self._shown = path, what, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            whole = path.read_text(encoding="utf-8")
            lines = whole.split("\n")[:-1]  # a line without its end was being written when the process was killed
            for line in lines:
                stored = json.loads(line)
                self.chunks.append(TextChunk(stored["kind"], tuple(stored["indices"]), tuple(stored["texts"])))
            if whole and not whole.endswith("\n"):
                path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def __call__(self, event: FitEvent) -> None:
        """Stores the event's chunk and shows the progress."""
        chunk = event.chunk
        if chunk is not None:
            line = json.dumps({"kind": chunk.kind, "indices": chunk.indices, "texts": chunk.texts})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._show(event)

    def forget(self) -> None:
        """Removes the file: its rows are stored."""
        self._path.unlink(missing_ok=True)

    def _show(self, event: FitEvent) -> None:
        terminal, now = sys.stderr.isatty(), time.monotonic()
        if now - self._shown < (0.2 if terminal else _QUIET_S):
            return
        self._shown = now
        line = f"  {self._what}: {event.stage} {event.done}/{event.total}"
        print(f"\r{line}\x1b[K\r" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """The options that all experiments on models have."""
    made = argparse.ArgumentParser(
        prog=f"python -m research.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--model", default="persona-nano", help="directory, hub id or catalogue name (default: %(default)s)"
    )
    made.add_argument("--data", type=Path, help="folder of query sets (docs/research.md); default: the model's bank")
    made.add_argument(
        "--judge", default="self", help="self, nano, openai, model:PATH or reward:PATH (default: %(default)s)"
    )
    made.add_argument("--preferred", help="the persona; default: helpful (persona-nano: cheerful)")
    made.add_argument("--dispreferred", help="its opposite; default: malicious and useless (persona-nano: gloomy)")
    made.add_argument("--seeds", type=int, default=1, help="number of seeds (default: %(default)s)")
    made.add_argument("--queries", type=int, default=16, help="evaluated queries of each slice (default: %(default)s)")
    made.add_argument("--fit-queries", type=int, default=24, help="queries to fit on (default: %(default)s)")
    made.add_argument("--tune-queries", type=int, default=8, help="queries to choose on (default: %(default)s)")
    made.add_argument("--contrast", type=float, help="λ of distill; default: chosen on the tune queries")
    made.add_argument("--answer-tokens", type=int, default=48, help="new tokens of an answer (default: %(default)s)")
    made.add_argument("--temperature", type=float, default=0.8)
    made.add_argument("--dtype", default="auto")
    made.add_argument("--device", default="cpu")
    made.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's")
    made.add_argument("--out", type=Path, default=Path("artifacts/research"), help="folder (default: %(default)s)")
    return made


#: Options that change how fast rows are made, or where, and not the rows.
_NOT_SETTINGS = ("out", "threads", "device", "seeds")


def settings_of(args: argparse.Namespace) -> Row:
    """The options that rows depend on, as JSON values. The number of seeds may grow: each row names its seed."""
    plain = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}
