"""Generation with plain forward hooks on a Hugging Face model: for interventions that no engine knows.

Engines edit one site, the MLP's output, by the position rule. ITI shifts attention heads, and a schedule over time
steps weighs an edit by the step. Both are hooks here, on one batch at a time. Prompts are padded on the left, so the
last column of every pass is the position that predicts the next token: the last prompt token first (step 0), then one
generated token per pass. The sampler is the engine's: the same seed draws the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Prompt
from alignez_core.engines.common.loading import load_model
from alignez_core.engines.common.sampling import BatchSampler, SamplingParams
from alignez_core.engines.common.tokens import TextTokens, eos_ids
from alignez_core.engines.slots.mlp_modules import (
    candidate_paths,
    find_blocks,
    find_mlp_modules,
    output_tensor,
    with_output_tensor,
)
from alignez_core.errors import UnknownArchitecture
from alignez_core.prompts import PromptFormat

#: (B, W) of the last column and the step → (B, W).
Change = Callable[[Tensor, int], Tensor]
#: The attention's output projection, in a block.
_PROJECTIONS = ("self_attn.o_proj", "self_attn.out_proj", "attn.c_proj", "attn.attention.out_proj", "attention.dense")
_ROWS = 32


@dataclass(frozen=True)
class Hook:
    """A change of one module's input or output at the last column of each pass."""

    module: nn.Module
    change: Change
    on_input: bool = False


class HookedModel:
    """A model in memory whose forward passes hooks change."""

    def __init__(self, model: PreTrainedModel, tokens: TextTokens) -> None:
        self.model, self.tokens = model, tokens
        config = model.config.get_text_config()
        self.n_layers, self.n_heads = int(config.num_hidden_layers), int(config.num_attention_heads)
        self._step = 0

    @classmethod
    def load(cls, path: str | Path, dtype: str = "auto", device: str = "cpu") -> HookedModel:
        """Raises: ModelNotFound, UnknownArchitecture, OutOfMemory."""
        loaded = load_model(path, device, dtype)
        model = loaded.model
        model.train(False)
        size = int(model.config.get_text_config().vocab_size)
        return cls(
            model, TextTokens(loaded.tokenizer, size, eos_ids(loaded.tokenizer, model.config, model.generation_config))
        )

    @property
    def prompt_format(self) -> PromptFormat:
        """As the engine has it."""
        return self.tokens.format("auto")

    def sites(self) -> list[nn.Module]:
        """The edit site of each layer, as engines have it."""
        return find_mlp_modules(self.model, self.n_layers, candidate_paths(self.model, None)[0])

    def projections(self) -> list[nn.Module]:
        """The output projection of each layer's attention; its input is (…, heads × head size).

        Raises: UnknownArchitecture.
        """
        blocks = find_blocks(self.model, self.n_layers, candidate_paths(self.model, None)[0])
        for name in _PROJECTIONS:
            try:
                return [block.get_submodule(name) for block in blocks]
            except AttributeError:
                continue
        raise UnknownArchitecture(
            f"no attention output projection ({', '.join(_PROJECTIONS)}) in the blocks of {type(self.model).__name__}"
        )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        hooks: Sequence[Hook] = (),
        *,
        max_tokens: int,
        temperature: float,
    ) -> list[str]:
        """The answers to N prompts, without the tokens that ended them.

        Args:
            seeds: (N,), of each row's own random stream.
            hooks: applied to every pass.
        """
        ids = [self.tokens.prompt_ids(prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        texts = [""] * len(ids)
        with self._hooked(hooks):
            for start in range(0, len(order), _ROWS):
                rows = order[start : start + _ROWS]
                params = [SamplingParams(temperature, seed=seeds[i]) for i in rows]
                for i, found in zip(rows, self._complete([ids[i] for i in rows], params, max_tokens), strict=True):
                    texts[i] = self.text(found)
        return texts

    @torch.inference_mode()
    def inputs_at_last(self, prompts: Sequence[Prompt], modules: Sequence[nn.Module]) -> Tensor:
        """(N, len(modules), W) float32: the modules' inputs at each prompt's last token."""
        kept: list[list[Tensor]] = [[] for _ in modules]
        ids = [self.tokens.prompt_ids(prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        hooks = [Hook(module, _keeping(rows), on_input=True) for module, rows in zip(modules, kept, strict=True)]
        with self._hooked(hooks):
            for start in range(0, len(order), _ROWS):
                self._first_pass([ids[i] for i in order[start : start + _ROWS]])
        found = torch.stack([torch.cat(rows) for rows in kept], dim=1)
        return found[torch.tensor(order).argsort()]

    def _complete(self, ids: Sequence[list[int]], params: Sequence[SamplingParams], most: int) -> list[list[int]]:
        sampler = BatchSampler(params, [0] * len(ids), self.model.device)
        out, mask = self._first_pass(ids)
        found: list[list[int]] = [[] for _ in ids]
        running = set(range(len(ids)))
        for step in range(most):
            tokens = sampler.sample(out.logits[:, -1])
            for row, token in enumerate(tokens.tolist()):
                if row in running:
                    if token in self.tokens.eos_ids:
                        running.discard(row)
                    else:
                        found[row].append(token)
            if not running or step == most - 1:
                break
            self._step = step + 1
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
            out = self.model(
                input_ids=tokens[:, None], attention_mask=mask, position_ids=(mask.sum(-1) - 1)[:, None],
                past_key_values=out.past_key_values, use_cache=True,
            )  # fmt: skip
        return found

    def _first_pass(self, ids: Sequence[list[int]]) -> tuple[Any, Tensor]:
        """Output of the pass over prompts, padded on the left, and the (B, T) mask."""
        self._step = 0
        width = max(map(len, ids))
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=self.model.device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        out = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        return out, mask

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, cut at a stop string."""
        text = self.tokens.text(ids)
        ends = [text.find(stop) for stop in self.prompt_format.stop]
        return text[: min((end for end in ends if end >= 0), default=len(text))]

    @contextmanager
    def _hooked(self, hooks: Sequence[Hook]) -> Iterator[None]:
        with ExitStack() as handles:
            for hook in hooks:
                register: Any = (
                    hook.module.register_forward_pre_hook if hook.on_input else hook.module.register_forward_hook
                )
                handles.callback(register(self._input_hook(hook) if hook.on_input else self._output_hook(hook)).remove)
            yield

    def _input_hook(self, hook: Hook) -> Callable[..., tuple[Tensor, ...]]:
        def changed(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return self._changed(inputs[0], hook), *inputs[1:]

        return changed

    def _output_hook(self, hook: Hook) -> Callable[..., Any]:
        def changed(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            return with_output_tensor(outputs, self._changed(output_tensor(outputs), hook))

        return changed

    def _changed(self, values: Tensor, hook: Hook) -> Tensor:
        out = values.clone()
        out[..., -1, :] = hook.change(values[..., -1, :], self._step).to(values.dtype)
        return out


def plan_hooks(model: HookedModel, plan: EditPlan, weight: Callable[[int], float] = lambda step: 1.0) -> list[Hook]:
    """The hooks of an edit whose strength at a step is `weight(step)` times the plan's."""
    sites = model.sites()

    def change(layer: int) -> Change:
        def edited(x: Tensor, step: int) -> Tensor:
            share = weight(step)
            return x if share == 0 else x + share * (plan.apply(x.float(), layer) - x.float()).to(x.dtype)

        return edited

    return [Hook(sites[layer], change(layer)) for layer in plan.layers]


def _keeping(rows: list[Tensor]) -> Change:
    def keep(x: Tensor, step: int) -> Tensor:
        rows.append(x.float().cpu())
        return x

    return keep
