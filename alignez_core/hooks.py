"""Edits on a plain Hugging Face model, for notebooks and experiments. Engines have their own hooks.

with edited_forward(model, edits=[plan_a, None, plan_b]):
    tokens = model.generate(**batch)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from alignez_core.editing import EditPlan
from alignez_core.engines.slots.mlp_modules import candidate_paths, find_mlp_modules, output_tensor, with_output_tensor
from alignez_core.errors import InvalidInput


@contextmanager
def edited_forward(
    model: nn.Module,
    edits: Sequence[EditPlan | None],
    prompt_lengths: Sequence[int] | None = None,
    path: str | None = None,
) -> Iterator[None]:
    """Applies one edit per row to all forward passes of one batch inside the `with` block, `model.generate` included.

    The first pass must contain the prompts. Later passes continue its key/value cache or repeat the whole text.

    Args:
        model: a Hugging Face causal language model.
        edits: B plans in row order; None leaves a row bit-equal.
        prompt_lengths: (B,) tokens of each prompt without padding, which must be on the left; None: no padding.
        path: module path of one block's edit site, with "{layer}". None: the first candidate of `mlp_modules`. Only an
            engine verifies the site of an unlisted model type.
    Raises: ModelMismatch: a plan belongs to another model. UnknownArchitecture: no such modules. InvalidInput: B is not
        the batch size.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    n_layers, hidden_size = int(config.num_hidden_layers), int(config.hidden_size)
    for plan in edits:
        if plan is not None:
            plan.check_fits(n_layers, hidden_size)
    if prompt_lengths is not None and len(prompt_lengths) != len(edits):
        raise InvalidInput("prompt_lengths", f"{len(prompt_lengths)} lengths for {len(edits)} edits")
    live = [None if plan is None or plan.is_identity else plan for plan in edits]
    batch = _Batch(live, list(prompt_lengths) if prompt_lengths is not None else None)
    modules = find_mlp_modules(model, n_layers, candidate_paths(model, path)[0])
    with ExitStack() as handles:
        handles.callback(model.register_forward_pre_hook(batch.start_pass, with_kwargs=True).remove)
        for layer in sorted({layer for plan in live if plan is not None for layer in plan.layers}):
            handles.callback(modules[layer].register_forward_hook(_edit_hook(batch, layer)).remove)
        yield


@dataclass
class _Batch:
    """Rows of one `edited_forward` and the edited columns of the current pass."""

    edits: list[EditPlan | None]
    prompt_lengths: list[int] | None
    prompt_width: int | None = None
    covered: list[list[int]] = field(default_factory=list)  #: edited columns of the current pass, by row

    def start_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = ids if ids is not None else kwargs.get("inputs_embeds")
        if tokens is None:
            raise InvalidInput("input_ids", "edited_forward needs input_ids or inputs_embeds")
        rows, width = int(tokens.shape[0]), int(tokens.shape[1])
        if rows != len(self.edits):
            raise InvalidInput("edits", f"{len(self.edits)} edits for a batch of {rows} rows")
        past = kwargs.get("past_key_values")
        first = int(past.get_seq_length()) if past is not None else 0
        if self.prompt_width is None:
            self.prompt_width = first + width
        lengths = self.prompt_lengths or [self.prompt_width] * rows
        self.covered = []
        for plan, length in zip(self.edits, lengths, strict=True):
            padding = self.prompt_width - length
            positions = [(column, first + column - padding) for column in range(width)]
            self.covered.append([c for c, t in positions if plan is not None and t >= 0 and plan.covers(t, length)])


def _edit_hook(batch: _Batch, layer: int) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, outputs: Any) -> Any:
        output = output_tensor(outputs)
        # OPT's fc2 outputs (B·T, D).
        out = output.clone().view(len(batch.edits), -1, output.shape[-1])
        for row, (plan, columns) in enumerate(zip(batch.edits, batch.covered, strict=True)):
            if plan is not None and columns:
                at = torch.tensor(columns, device=out.device)
                out[row, at] = plan.apply(out[row, at], layer)
        return with_output_tensor(outputs, out.view(output.shape))

    return hook
