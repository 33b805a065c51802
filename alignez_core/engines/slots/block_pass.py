"""Forward passes that halt between blocks, so that a fit sees one block of all its texts before the next block runs.

A pass over many texts goes in batches of bounded size. Each batch has a thread of its own whose forward pass halts
inside a hook; the engine's thread resumes one batch at a time, between two steps of the running streams. A halted pass
over T tokens of width D keeps its residual stream, and x and r in float32 (`base.pass_bytes`), however many layers the
model has; beside that one batch's activations live.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import BlockStates
from alignez_core.engines.slots.batches import WholeTextEdits, token_batches
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.errors import AlignezError, InvalidInput

_END = 1 << 30  #: a layer that no model has


class _Abandoned(BaseException):
    """Ends a halted forward pass; no library on the way up may swallow it."""


class HaltingPass:
    """A `BlockPass` over one model.

    Args:
        prompts, continuations: N rows of token ids. edits: N plans or None.
        run: runs a piece of work on the engine's thread, between two steps.
        budget: tokens of one batch, padding and copies included. copies: of `fork`.
    """

    def __init__(
        self,
        runner: SlotRunner,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        edits: Sequence[EditPlan | None],
        run: Callable[[Callable[[], None]], Future[None]],
        budget: int,
        copies: int = 1,
    ) -> None:
        texts = [[*prompt, *tail] for prompt, tail in zip(prompts, continuations, strict=True)]
        # The token at position t is predicted at position t - 1.
        spans = [range(len(prompt) - 1, len(text) - 1) for prompt, text in zip(prompts, texts, strict=True)]
        self.lengths = tuple(len(span) for span in spans)
        self.site_scale = runner.site_scale
        self._run = run
        self._copies, self._forked = copies, 1
        self._layer = -1
        self._chosen = token_batches([len(text) for text in texts], budget // copies)
        self._batches = [
            _Batch(
                runner,
                [texts[i] for i in chosen],
                [spans[i] for i in chosen],
                [edits[i] for i in chosen],
                [len(prompts[i]) for i in chosen],
            )
            for chosen in self._chosen
        ]

    def after(self, layer: int) -> BlockStates:
        self._advance(layer)
        return BlockStates(self._gather([b.x for b in self._batches]), self._gather([b.r for b in self._batches]))

    def fork(self) -> None:
        self._forked = self._copies
        for batch in self._batches:
            batch.fork(self._copies)

    def add(self, delta: Tensor) -> None:
        rows = torch.split(delta, list(self.lengths) * self._forked)
        count = len(self.lengths)
        for batch, chosen in zip(self._batches, self._chosen, strict=True):
            batch.delta = torch.cat([rows[copy * count + i] for copy in range(self._forked) for i in chosen])

    def logits(self) -> Tensor:
        self._advance(_END)
        out = self._gather([b.out for b in self._batches])
        self.close()
        return out

    def close(self) -> None:
        for batch in self._batches:
            batch.abandon()

    def _advance(self, layer: int) -> None:
        if layer <= self._layer:
            raise InvalidInput("layer", f"{layer} does not come after block {self._layer}, where the pass stands")
        self._layer = layer
        try:
            for batch in self._batches:
                self._run(partial(batch.advance, layer)).result()
        except BaseException:
            self.close()
            raise

    def _gather(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Rows of all batches in request order, copy by copy, (T, …)."""
        count = len(self.lengths)
        rows: list[Tensor] = [torch.empty(0)] * (count * self._forked)
        for part, chosen in zip(parts, self._chosen, strict=True):
            if part is None:
                raise AlignezError("the pass has not reached this block, or is closed")
            places = [copy * count + i for copy in range(self._forked) for i in chosen]
            for place, row in zip(places, torch.split(part, [self.lengths[p % count] for p in places]), strict=True):
                rows[place] = row
        return torch.cat(rows)


class _Batch:
    """One batch's forward pass, in a thread that runs only while `advance` waits for it."""

    def __init__(
        self,
        runner: SlotRunner,
        texts: list[list[int]],
        spans: list[range],
        edits: list[EditPlan | None],
        prompt_lengths: list[int],
    ) -> None:
        self.x: Tensor | None = None
        self.r: Tensor | None = None
        self.out: Tensor | None = None
        self.delta: Tensor | None = None
        self._runner = runner
        self._texts, self._spans = texts, spans
        edited = WholeTextEdits(edits, prompt_lengths, max(len(text) for text in texts))
        self._edits = edited if edited.rows else None
        self._until = -1
        self._site: Tensor | None = None
        self._places: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._error: BaseException | None = None
        self._abandoned = False
        self._fork = 1
        self._resume = threading.Semaphore(0)
        self._halted = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def advance(self, layer: int) -> None:
        """Runs until block `layer` is done. Raises what the forward pass raises."""
        self._until = layer
        if self._thread is None:
            self._places = self._runner.places(self._spans)
            self._thread = threading.Thread(target=self._work, name="alignez-block-pass", daemon=True)
            self._thread.start()
        self._resume.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error

    def fork(self, copies: int) -> None:
        """Repeats the rows when the pass goes on."""
        rows, positions = self._places
        texts = len(self._texts)
        self._places = torch.cat([rows + texts * copy for copy in range(copies)]), positions.repeat(copies)
        self._fork = copies

    def abandon(self) -> None:
        """Ends the thread; the pass need not be over."""
        if self._thread is not None and not self._abandoned:
            self._abandoned = True
            self._resume.release()
            self._thread.join()
        self._thread = None
        self.x = self.r = self.out = self.delta = self._site = None

    def take(self, layer: int, output: Tensor) -> None:
        """Keeps the site's output of the block at which the pass will halt."""
        if layer == self._until:
            self._site = output

    def visit(self, layer: int, residual: Tensor) -> Tensor | None:
        """Halts after the block that was asked for; what was added meanwhile joins the residual stream."""
        if layer != self._until or self._site is None:
            return None
        rows, positions = self._places
        length = residual.shape[1]
        site = self._site.view(-1, length, self._site.shape[-1])
        self.x, self.r = site[rows, positions].float(), residual[rows, positions].float()
        self._site = None
        self._halt()
        if self._fork == 1 and self.delta is None:
            return None
        changed = residual.repeat(self._fork, 1, 1)  # a copy even of one
        self._fork = 1
        if self.delta is not None:
            at = self._places
            changed[at] = (changed[at].float() + self.delta).to(residual.dtype)
            self.delta = None
        return changed

    def _halt(self) -> None:
        self._halted.release()
        self._resume.acquire()
        if self._abandoned:
            raise _Abandoned

    def _work(self) -> None:
        self._resume.acquire()
        try:
            if not self._abandoned:
                out = self._runner.visit(self._texts, self._spans, self, self, self._edits)
                self.out = out.float()
        except _Abandoned:
            return
        except BaseException as error:
            self._error = error
        self._halted.release()
