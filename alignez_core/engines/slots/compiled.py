"""The decode step through `torch.compile`: a few programs for any number of rows, lengths, ranks and plans.

Every size that changes between steps is a variable of a program. There are four programs: for one row and for more,
with and without edits. On a GPU a step is replayed from a CUDA graph that was recorded of its program; graphs have
fixed shapes and addresses, so rows and key lengths come in buckets there (`row_bucket`, `key_bucket`), and a cache or a
table that moves in memory drops them all. `mode="reduce-overhead"` would not do: torch 2.13 records nothing that writes
to its inputs, as a step does to its cache. **Not run on a GPU so far.**

What holds: a row without an edit keeps every bit, whatever plans its neighbours have and lose. In a step with edits it
is selected by `where`; between a step with and one without edits the program changes, so `warm_up` compares the two,
and unless they give the same bits it takes the one with edits for every step (10 % slower on the CPU). Between one row
and more, and between this step and the uncompiled one, logits differ in the last bits: other kernels, other sums.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignez_core.engines.slots.cache import CompiledCache, SlotCache
from alignez_core.engines.slots.edits import DecodeEdits, EditTables
from alignez_core.engines.slots.step import Step, begin_traced, end_traced
from alignez_core.engines.slots.step_inputs import StepInputs

_log = logging.getLogger(__name__)

_KEY_STEP = 64
#: Maximum number of programs. A step that needs more would be recompiled repeatedly; the uncompiled one is faster.
_MAX_PROGRAMS = 8


def row_bucket(rows: int, max_slots: int) -> int:
    """Rows of the graph that serves so many: a power of two, `max_slots` at most."""
    return min(max_slots, 1 << max(rows - 1, 0).bit_length())


def key_bucket(length: int, max_length: int) -> int:
    """Keys of the graph that serves so many: the next multiple of 64 or, above 512, of an eighth of a power of two.

    So there are four buckets from one power of two to the next, and a step reads a quarter more than it must at most.
    """
    step = max(_KEY_STEP, (1 << max(length - 1, 0).bit_length()) // 8)
    return min(max_length, -(-length // step) * step)


class CompiledStep:
    """The compiled decode step of one model; `warm_up` makes its programs.

    Args:
        model: with the runner's hooks and attention in place.
        max_slots: rows at most. backend: torch's name of what compiles the traced step.
    """

    def __init__(self, model: PreTrainedModel, max_slots: int, backend: str = "inductor") -> None:
        self._model = model
        self._max_slots = max_slots
        self._backend = backend
        # torch 2.13's overloads leave out the last two, which its implementation has.
        self._run: Callable[..., Tensor] = torch.compile(  # type: ignore[call-overload]
            self._forward,
            fullgraph=True,
            dynamic=True,
            backend=self._compile,
            isolate_recompiles=True,
            recompile_limit=_MAX_PROGRAMS,
        )
        self._graphs = _CudaGraphs(model.device) if model.device.type == "cuda" else None
        self.programs = 0
        #: True if every step runs a program with edits.
        self.always_edits = False

    @property
    def fixed_shapes(self) -> bool:
        """True if rows and keys must come in buckets."""
        return self._graphs is not None

    @torch.inference_mode()
    def warm_up(self, cache: SlotCache, tables: EditTables) -> None:
        """Compiles all programs. Raises: whatever the compiler does.

        Args: cache, tables: of the runner, after a prefill, for the shape and kind of their tensors.
        """
        keys, values = cache.tensors()
        n_layers, _, _, hidden = tables.u.shape
        # The compiler takes sizes that are equal in its example for one variable, so all are different in ours.
        taken = {n_layers, *(size for tensor in keys + values for size in tensor.shape[1::2])}
        taken |= {size for size in self._model.config.get_text_config().to_dict().values() if isinstance(size, int)}
        ranks, rows, slots, table_slots, columns, length = _sizes_unlike(taken, 6)
        if self._max_slots == 1:
            rows = slots = 1
        generator = torch.Generator(keys[0].device).manual_seed(0)

        def example(like: Tensor, *shape: int) -> Tensor:
            return like.new_empty(shape).normal_(generator=generator)

        stores = [[example(old, slots, old.shape[1], length, old.shape[3]) for old in side] for side in (keys, values)]
        u, v = (example(tables.u, n_layers, table_slots, ranks, hidden) for _ in range(2))
        c = example(tables.c, n_layers, table_slots, ranks)
        for count in sorted({1, rows}):
            tokens, edited = (torch.zeros(count, dtype=torch.long, device=u.device) for _ in range(2))
            positions = torch.arange(count, device=u.device) % columns
            plain = self._run(tokens, positions, edited, *stores, None, None, None, columns)
            beside = self._run(tokens, positions, edited, *stores, u, v, c, columns)
            if not torch.equal(plain, beside):
                self.always_edits = True
                _log.info("decode step: plain rows get other bits without edits, so every step is compiled with them")

    def __call__(
        self, inputs: StepInputs, cache: SlotCache, tables: EditTables | None, key_length: int, version: object = None
    ) -> Tensor:
        """(B, vocabulary) logits after each row's token, which is put into the cache.

        On a GPU the next call overwrites them.

        Args:
            tables: None when no row is edited.
            version: of every tensor that steps keep using in place; another one when one has moved.
        """
        u, v, c = (None, None, None) if tables is None else (tables.u, tables.v, tables.c)

        def run() -> Tensor:
            stores = cache.tensors()
            return self._run(inputs.tokens, inputs.positions, inputs.edited, *stores, u, v, c, key_length)

        if self._graphs is None:
            return run()
        return self._graphs.replay(version, (len(inputs.tokens), key_length, tables is not None), run)

    def _forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        edited: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        u: Tensor | None,
        v: Tensor | None,
        c: Tensor | None,
        key_length: int,
    ) -> Tensor:
        rows = tokens.shape[0]
        edits = None
        if u is not None and v is not None and c is not None:
            edits = DecodeEdits(u[:, :rows], v[:, :rows], c[:, :rows], range(u.shape[0]), edited[:, None] != 0)
        begin_traced(Step(positions, key_length, uniform=False, edits=edits))
        out = self._model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            past_key_values=CompiledCache(keys, values, positions, key_length),
            use_cache=True,
        )
        end_traced()
        logits: Tensor = out.logits
        return logits[:, 0]

    def _compile(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., object]:
        from torch._dynamo import lookup_backend

        started = time.monotonic()
        program: Callable[..., object] = lookup_backend(self._backend)(graph, examples)
        self.programs += 1
        _log.info("decode step: program %d compiled in %.0f s", self.programs, time.monotonic() - started)
        return program


class _CudaGraphs:
    """Recorded steps by shape. Their memory is one pool, so each replay overwrites what the last one gave."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._version: object = None
        self._graphs: dict[tuple[int, int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def replay(self, version: object, shape: tuple[int, int, bool], run: Callable[[], Tensor]) -> Tensor:
        """The result of `run`, replayed from the recording of this version and shape; records it first if need be."""
        if version != self._version:
            self._graphs.clear()
            self._version = version
        with torch.cuda.device(self._device):
            if shape not in self._graphs:
                self._graphs[shape] = self._record(shape, run)
            graph, logits = self._graphs[shape]
            graph.replay()
        return logits

    def _record(self, shape: tuple[int, int, bool], run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        started = time.monotonic()
        # Once for real before, on a stream beside: libraries allocate and choose kernels in their first run, which must
        # not happen in a recording. A step that is repeated writes the same keys and values to the same places.
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Not "global", which lets other threads' use of the device fail the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = run()
        rows, keys, edits = shape
        kind = "with" if edits else "without"
        seconds = time.monotonic() - started
        _log.info("decode step: recorded %d rows, %d keys, %s edits in %.1f s", rows, keys, kind, seconds)
        return graph, logits


def _sizes_unlike(taken: set[int], count: int) -> list[int]:
    """The first `count` odd numbers from 11 on that are not in `taken`."""
    free = (size for size in itertools.count(11, 2) if size not in taken)
    return list(itertools.islice(free, count))
