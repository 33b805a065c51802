"""Runs the model over slots: prefill of rows that join, one token more for every live row, rows leaving."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignez_core.editing import EditPlan
from alignez_core.engines.slots import attention
from alignez_core.engines.slots.cache import SlotCache, StepCache
from alignez_core.engines.slots.compiled import CompiledStep, key_bucket, row_bucket
from alignez_core.engines.slots.edits import SlotEdits
from alignez_core.engines.slots.mlp_modules import output_tensor, residual_factor, with_output_tensor
from alignez_core.engines.slots.step import BlockVisitor, MlpEdits, MlpReader, Packing, Step, current_step, running
from alignez_core.engines.slots.step_inputs import InputBuffer

_log = logging.getLogger(__name__)

#: Decode steps between two looks at how much of the cache's memory they needed; at most one copy in so many.
_SHRINK_STEPS = 256


class SlotRunner:
    """A model, the slots of its running rows, and the hooks that edit them. Not thread-safe: one thread runs it.

    Args:
        model: a causal language model in evaluation mode; its attention is replaced, so it belongs to the runner.
        mlps: the edit site of each block (`mlp_modules`).
        blocks: the blocks themselves, where passes are to halt between them (`visit`).
        max_slots: rows at most. context_length: tokens per row at most.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mlps: Sequence[nn.Module],
        max_slots: int,
        context_length: int,
        blocks: Sequence[nn.Module] = (),
    ) -> None:
        attention.install(model)
        self._model = model
        self.device = model.device
        self._cache = SlotCache(max_slots, context_length)
        hidden_size = int(model.config.get_text_config().hidden_size)
        self._edits = SlotEdits(len(mlps), hidden_size, max_slots, self.device)
        self._lengths = np.zeros(max_slots, dtype=np.int64)
        # The prompt that is prefilled in pieces has a place of its own, because live rows must be the first slots.
        self._piece_cache = SlotCache(1, context_length)
        self._piece_edits = SlotEdits(len(mlps), hidden_size, 1, self.device)
        self._prefilled = 0
        self._inputs = InputBuffer(max_slots, self.device)
        self._compiled: CompiledStep | None = None
        self._buckets = False
        self._steps, self._peak = 0, (0, 0)
        self._context_length = context_length
        self.max_slots = max_slots
        #: Factor by which an MLP's output is multiplied before it joins the residual stream.
        self.site_scale = residual_factor(model.config)
        self.rows = 0
        self._handles = [mlp.register_forward_hook(_mlp_hook(layer)) for layer, mlp in enumerate(mlps)]
        self._handles += [block.register_forward_hook(_block_hook(layer)) for layer, block in enumerate(blocks)]
        head: nn.Module = model.get_output_embeddings()
        self._handles.append(head.register_forward_pre_hook(_keep_wanted_positions))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], edits: Sequence[EditPlan | None]) -> Tensor:
        """Takes the next slots for these prompts; (m, vocabulary) logits of the token after each.

        On any error no row has joined.
        """
        first, count = self.rows, len(prompts)
        lengths = [len(prompt) for prompt in prompts]
        self._cache.reserve(first + count, max(lengths))
        for i, (plan, length) in enumerate(zip(edits, lengths, strict=True)):
            self._edits.set(first + i, plan, length)
        wanted = torch.arange(count, device=self.device), self._tensor(lengths) - 1
        step = Step(wanted=wanted, edits=self._edits.prefill(first, lengths))
        logits = self._forward(self.padded(prompts), step, StepCache(self._cache, first))
        self._lengths[first : first + count] = lengths
        self.rows += count
        return logits[:, 0]

    @torch.inference_mode()
    def prefill_piece(self, prompt: Sequence[int], edit: EditPlan | None, tokens: int) -> Tensor | None:
        """Prefills the next `tokens` of a prompt beside the live rows; with its last ones it takes the next slot.

        One prompt at a time: calls repeat the same prompt and edit until it has joined or `drop_pieces` was called.

        Returns: None, and at the end (1, vocabulary) logits of the token after it. On any error no row has joined.
        """
        start, length = self._prefilled, len(prompt)
        end = min(start + tokens, length)
        if start == 0:
            self._piece_cache.reserve(1, length)
            self._piece_edits.set(0, edit, length)
        edits = self._piece_edits.prefill(0, [end - start], to_the_end=end == length)
        last = self._tensor([0]), self._tensor([end - start - 1])
        step = Step(start=start, wanted=last, edits=edits)
        positions = torch.arange(start, end, device=self.device)[None]
        view = StepCache(self._piece_cache, 0, start=start)
        logits = self._forward(self._tensor(prompt[start:end])[None], step, view, positions)
        self._prefilled = end
        if end < length:
            return None
        slot = self.rows
        self._cache.reserve(slot + 1, length)
        self._cache.copy_from(self._piece_cache, slot, length)
        self._edits.set(slot, edit, length)
        self._lengths[slot] = length
        self.drop_pieces()
        self.rows += 1
        return logits[:, 0]

    @torch.inference_mode()
    def drop_pieces(self) -> None:
        """Forgets the prompt that is being prefilled in pieces and gives its memory back."""
        self._prefilled = 0
        self._piece_edits.set(0, None, 0)
        self._piece_cache.clear()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Tensor:
        """Appends one token to each live row; (rows, vocabulary) logits of the token after it."""
        lengths = self._lengths[: self.rows]
        edited = self._edits.edited(lengths)
        logits = self._decode_compiled(tokens, edited)
        if logits is None:
            logits = self._decode(tokens, edited)
        lengths += 1
        self._shrink_now_and_then()
        return logits

    def _shrink_now_and_then(self) -> None:
        """Gives the cache's memory back that the last steps, and any row that lives, could have done without."""
        self._peak = max(self._peak[0], self.rows), max(self._peak[1], int(self._lengths[: self.rows].max()) + 1)
        self._steps += 1
        if self._steps == _SHRINK_STEPS:
            self._cache.shrink(*self._peak)
            self._steps, self._peak = 0, (0, 0)

    def _decode(self, tokens: Sequence[int], edited: np.ndarray) -> Tensor:
        rows = self.rows
        lengths = self._lengths[:rows]
        longest = int(lengths.max())
        uniform = int(lengths.min()) == longest
        self._cache.reserve(rows, longest + 1)
        inputs = self._inputs.load(tokens, lengths, edited, rows)
        positions = inputs.positions
        step = Step(positions, longest + 1, uniform, edits=self._edits.decode(edited, inputs.edited))
        view = StepCache(self._cache, 0, positions, longest if uniform else None, longest + 1)
        return self._forward(inputs.tokens[:, None], step, view, positions[:, None])[:, 0]

    def _decode_compiled(self, tokens: Sequence[int], edited: np.ndarray) -> Tensor | None:
        """As `_decode`; None if the compiled step is missing or has failed."""
        compiled = self._compiled
        if compiled is None:
            return None
        lengths = self._lengths[: self.rows]
        rows, keys = self.rows, int(lengths.max()) + 1
        if self._buckets:
            # Padding rows are the free slots behind the live ones; a prefill overwrites what they write.
            rows, keys = row_bucket(rows, self.max_slots), key_bucket(keys, self._context_length)
        try:
            # Two slots, where there may be two, because the compiler would make a program of its own for one.
            self._cache.reserve(max(rows, 2), keys)
            inputs = self._inputs.load(tokens, lengths, edited, rows)
            tables = self._edits.tables(rows) if compiled.always_edits or edited.any() else None
            logits = compiled(inputs, self._cache, tables, keys, (self._cache.version, self._edits.version))
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # an error of the compiler must not fail requests
            self._do_without_compiled(error)
            return None
        return logits[: self.rows]

    @torch.inference_mode()
    def compile(self, *, buckets: bool = False, backend: str = "inductor") -> bool:
        """Compiles the decode step, compares it with the uncompiled one and uses it from now on.

        Args:
            buckets: rows and key lengths in buckets, padded, as CUDA graphs always have them.
            backend: torch's name of the compiler.
        Returns: False when it cannot be; the log says why, and the engine goes on without.
        """
        prompts = [[1, 4, 2, 5, 3, 6], [3, 1, 2]][: self.max_slots]
        try:
            compiled = CompiledStep(self._model, self.max_slots, backend)
            self.prefill(prompts, [None] * len(prompts))
            compiled.warm_up(self._cache, self._edits.tables(len(prompts)))
            expected = self.decode([1] * len(prompts)).float()
            self._lengths[: self.rows] -= 1
            self._compiled, self._buckets = compiled, buckets or compiled.fixed_shapes
            got = self.decode([1] * len(prompts)).float()
            tolerance = 1e-3 if self._model.dtype == torch.float32 else 0.1
            if self._compiled is not None and not torch.allclose(got, expected, atol=tolerance, rtol=tolerance):
                self._do_without_compiled(f"logits differ by {float((got - expected).abs().max()):.2g}")
        except Exception as error:  # no compiler, an older torch, or a model that it cannot trace
            self._do_without_compiled(error)
        finally:
            self.reset()
        return self._compiled is not None

    @property
    def slot_bytes(self) -> int:
        """Bytes that the keys, values and edits of the slots take."""
        tensors = [tensor for side in self._cache.tensors() for tensor in side]
        return sum(tensor.nbytes for tensor in tensors) + self._edits.nbytes

    @property
    def programs(self) -> int:
        """Programs that the compiled decode step is made of by now; 0 without one."""
        return 0 if self._compiled is None else self._compiled.programs

    def _do_without_compiled(self, reason: object) -> None:
        self._compiled = None
        kind = f"{type(reason).__name__}: " if isinstance(reason, Exception) else ""
        what = " ".join(str(reason).split("\n")[:2]).strip()  # the rest is a long trace
        _log.warning("the decode step runs uncompiled: %s%s", kind, what)

    @torch.inference_mode()
    def remove(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Frees slots; live rows from the end fill the holes.

        Returns: the moves (from, to) in the order to repeat them in the caller's own list of rows.
        """
        moves = []
        for row in sorted(rows, reverse=True):
            self.rows -= 1
            last = self.rows
            if row != last:
                self._cache.move(last, row, int(self._lengths[last]))
                self._edits.move(last, row)
                self._lengths[row] = self._lengths[last]
                moves.append((last, row))
            self._edits.set(last, None, 0)
        return moves

    @torch.inference_mode()
    def reset(self) -> None:
        """Drops every row and gives the memory of cache and edits back."""
        self.rows = 0
        self._edits.clear()
        self._cache.clear()
        self.drop_pieces()

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]], reader: MlpReader) -> None:
        """One pass over whole texts, without slots, edits or logits, for their MLP outputs."""
        ids = self.padded(texts)
        with running(Step(reader=reader)):
            self._model.base_model(input_ids=ids, position_ids=self._positions(ids), use_cache=False)

    @torch.inference_mode()
    def visit(
        self,
        texts: Sequence[Sequence[int]],
        wanted: Sequence[Sequence[int]],
        reader: MlpReader,
        visitor: BlockVisitor,
        edits: MlpEdits | None,
    ) -> Tensor:
        """One pass over whole texts that `visitor` sees between blocks; (M, vocabulary) logits at the wanted places.

        The visitor may repeat the rows (`fork`): positions are the same for all rows, so what follows takes any number.
        """
        ids = self.padded(texts)
        step = Step(wanted=self.places(wanted), edits=edits, reader=reader, visitor=visitor)
        with running(step):
            logits: Tensor = self._model(input_ids=ids, position_ids=self._positions(ids)[:1], use_cache=False).logits
        return logits[:, 0]

    def places(self, wanted: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(M,) rows and (M,) positions of the wanted positions of each row, in order."""
        rows = self._tensor([row for row, span in enumerate(wanted) for _ in span])
        return rows, self._tensor([position for span in wanted for position in span])

    @torch.inference_mode()
    def logits(
        self,
        texts: Sequence[Sequence[int]],
        wanted: Sequence[Sequence[int]],
        edits: MlpEdits | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """(M, vocabulary) logits of whole texts, without slots, at the M wanted positions, text by text."""
        ids = self.padded(texts)
        positions = self._positions(ids) if packing is None else packing.positions
        with running(Step(wanted=self.places(wanted), edits=edits, packing=packing)):
            logits: Tensor = self._model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return logits[:, 0]

    def padded(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(m, T) token ids, padded on the right with 0; causal attention keeps the padding out of every real token."""
        ids = torch.zeros(len(texts), max(len(text) for text in texts), dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = torch.as_tensor(text)
        return ids.to(self.device)

    def close(self) -> None:
        """Removes the hooks and frees the cache."""
        for handle in self._handles:
            handle.remove()
        self.reset()

    def _forward(self, ids: Tensor, step: Step, cache: StepCache, positions: Tensor | None = None) -> Tensor:
        positions = self._positions(ids) if positions is None else positions
        with running(step):
            out = self._model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        logits: Tensor = out.logits
        return logits

    def _positions(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[1], device=self.device).expand(ids.shape[0], -1)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _mlp_hook(layer: int) -> Callable[[nn.Module, object, Any], Any]:
    def hook(module: nn.Module, args: object, output: Any) -> Any:
        step = current_step()
        if step is None:
            return None
        tensor = output_tensor(output)
        if step.reader is not None:
            step.reader.take(layer, tensor)
        edited = None if step.edits is None else step.edits.apply(layer, tensor)
        return None if edited is None else with_output_tensor(output, edited)

    return hook


def _block_hook(layer: int) -> Callable[[nn.Module, object, object], object]:
    def hook(module: nn.Module, args: object, output: object) -> object:
        step = current_step()
        if step is None or step.visitor is None:
            return None
        changed = step.visitor.visit(layer, output_tensor(output))
        return None if changed is None else with_output_tensor(output, changed)

    return hook


def _keep_wanted_positions(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    # Before the output embedding, because a large vocabulary's logits at every prompt position would fill the memory.
    step = current_step()
    if step is None or step.wanted is None:
        return None
    rows, positions = step.wanted
    return (args[0][rows, positions].unsqueeze(1),)
