"""An engine whose calls of the model a test can watch, hold or fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.engines.slots.runner import SlotRunner
from tests.core.engines.tiny_models import tiny_engine


class Watched:
    """The calls that an engine makes of its runner.

    Attributes:
        on: by the name of a `SlotRunner` method, what the engine calls in its place, with the real method first.
        runner: the engine's runner.
    """

    runner: WatchedRunner

    def __init__(self) -> None:
        self.on: dict[str, Callable[..., Any]] = {}

    def make(self, *args: Any) -> SlotRunner:
        self.runner = WatchedRunner(self.on, *args)
        return self.runner

    def fail_once(self, name: str, error: Exception) -> None:
        """The next call of a method raises `error`."""

        def fail(*_: object) -> None:
            del self.on[name]
            raise error

        self.on[name] = fail


@contextmanager
def watched_engine(kind: str = "llama", **settings: Any) -> Iterator[tuple[TransformersEngine, Watched]]:
    """A tiny engine and its calls of the model."""
    watched = Watched()
    with tiny_engine(kind, make_runner=watched.make, **settings) as engine:
        yield engine, watched


class WatchedRunner(SlotRunner):
    """A runner that calls what a test has put in place of its methods."""

    def __init__(self, on: dict[str, Callable[..., Any]], *args: Any) -> None:
        super().__init__(*args)
        self._on = on
        #: Prompts of the live rows, in the order of their slots.
        self.prompts: list[list[int]] = []

    def prefill(self, *args: Any) -> Any:
        logits = self._call("prefill", super().prefill, *args)
        self.prompts += args[0]
        return logits

    def remove(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        moves = super().remove(rows)
        for last, row in moves:
            self.prompts[row] = self.prompts[last]
        del self.prompts[self.rows :]
        return moves

    def prefill_piece(self, *args: Any) -> Any:
        logits = self._call("prefill_piece", super().prefill_piece, *args)
        if logits is not None:
            self.prompts.append(args[0])
        return logits

    def decode(self, *args: Any) -> Any:
        return self._call("decode", super().decode, *args)

    def reset(self) -> None:
        super().reset()
        self.prompts.clear()

    def _call(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        instead = self._on.get(name)
        return real(*args) if instead is None else instead(real, *args)
