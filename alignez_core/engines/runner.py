"""Runs the model over slots: prefill of rows that join, one token more for every live row, rows leaving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignez_core.editing import EditPlan
from alignez_core.engines import attention
from alignez_core.engines.slot_cache import SlotCache, StepCache
from alignez_core.engines.slot_edits import SlotEdits
from alignez_core.engines.step import MlpEdits, MlpReader, Step, current_step, running


class SlotRunner:
    """A model, the slots of its running rows, and the hooks that edit them. Not thread-safe: one thread runs it.

    Args:
        model: a causal language model in evaluation mode; its attention is replaced, so it belongs to the runner.
        mlps: the MLP module of each block.
        max_slots: rows at most. context_length: tokens per row at most.
    """

    def __init__(self, model: PreTrainedModel, mlps: Sequence[nn.Module], max_slots: int, context_length: int) -> None:
        attention.install(model)
        self._model = model
        self._device = model.device
        self._cache = SlotCache(max_slots, context_length)
        hidden_size = int(model.config.get_text_config().hidden_size)
        self._edits = SlotEdits(len(mlps), hidden_size, max_slots, self._device)
        self._lengths = np.zeros(max_slots, dtype=np.int64)
        # The prompt that is prefilled in pieces has a place of its own, because live rows must be the first slots.
        self._piece_cache = SlotCache(1, context_length)
        self._piece_edits = SlotEdits(len(mlps), hidden_size, 1, self._device)
        self._prefilled = 0
        self.max_slots = max_slots
        self.rows = 0
        self._handles = [mlp.register_forward_hook(_mlp_hook(layer)) for layer, mlp in enumerate(mlps)]
        head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
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
        wanted = torch.arange(count, device=self._device), self._tensor(lengths) - 1
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
        positions = torch.arange(start, end, device=self._device)[None]
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
        rows = self.rows
        lengths = self._lengths[:rows]
        longest = int(lengths.max())
        uniform = int(lengths.min()) == longest
        self._cache.reserve(rows, longest + 1)
        positions = torch.from_numpy(lengths.copy()).to(self._device)
        step = Step(positions, longest + 1, uniform, edits=self._edits.decode(lengths))
        view = StepCache(self._cache, 0, positions, longest if uniform else None, longest + 1)
        logits = self._forward(self._tensor(tokens)[:, None], step, view, positions[:, None])
        lengths += 1
        return logits[:, 0]

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
        """Drops every row and gives the cache's memory back."""
        for row in range(self.rows):
            self._edits.set(row, None, 0)
        self.rows = 0
        self._cache.clear()
        self.drop_pieces()

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]], reader: MlpReader) -> None:
        """One pass over whole texts, without slots, edits or logits, for their MLP outputs."""
        ids = self.padded(texts)
        with running(Step(reader=reader)):
            self._model.base_model(input_ids=ids, position_ids=self._positions(ids), use_cache=False)

    @torch.inference_mode()
    def logits(
        self, texts: Sequence[Sequence[int]], spans: Sequence[range], edits: MlpEdits | None = None
    ) -> list[Tensor]:
        """Logits of whole texts, without slots: per text (T, vocabulary), T the positions of its span."""
        ids = self.padded(texts)
        rows = self._tensor([row for row, span in enumerate(spans) for _ in span])
        positions = self._tensor([position for span in spans for position in span])
        with running(Step(wanted=(rows, positions), edits=edits)):
            out = self._model(input_ids=ids, position_ids=self._positions(ids), use_cache=False)
        return list(out.logits[:, 0].split([len(span) for span in spans]))

    def padded(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(m, T) token ids, padded on the right with 0; causal attention keeps the padding out of every real token."""
        ids = torch.zeros(len(texts), max(len(text) for text in texts), dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = torch.as_tensor(text)
        return ids.to(self._device)

    def close(self) -> None:
        """Removes the hooks and frees the cache."""
        for handle in self._handles:
            handle.remove()
        self.reset()

    def _forward(self, ids: Tensor, step: Step, cache: StepCache, positions: Tensor | None = None) -> Tensor:
        positions = self._positions(ids) if positions is None else positions
        with running(step):
            out = self._model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        return out.logits  # type: ignore[no-any-return]

    def _positions(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[1], device=self._device).expand(ids.shape[0], -1)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _mlp_hook(layer: int) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        step = current_step()
        if step is None:
            return None
        if step.reader is not None:
            step.reader.take(layer, output)
        return None if step.edits is None else step.edits.apply(layer, output)

    return hook


def _keep_wanted_positions(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    # Before the output embedding, because a large vocabulary's logits at every prompt position would fill the memory.
    step = current_step()
    if step is None or step.wanted is None:
        return None
    rows, positions = step.wanted
    return (args[0][rows, positions].unsqueeze(1),)
