"""A plain Hugging Face model with forward hooks, one text at a time: what our engines' numbers are checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

#: layer → what to do with the (n, D) MLP outputs at the edited positions
Edits = Mapping[int, Callable[[Tensor], Tensor]]


class PlainModel:
    """States and logits at the positions that predict an answer's tokens; tokens are `byte_tokenizer`'s."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.no_grad()
    def read(self, prompt: str, answer: str, edits: Edits | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (L, T, D), MLP outputs; r (L, T, D), the residual stream after each block; logits (T, vocabulary)."""
        ids = [3 + _byte(b) for b in f"{prompt}{answer}".encode()]
        at = slice(len(prompt.encode()) - 1, len(ids) - 1)
        x: list[Tensor] = []
        r: list[Tensor] = []
        handles = []
        for layer, block in enumerate(self.model.model.layers):

            def mlp(module: nn.Module, args: Any, out: Tensor, layer: int = layer) -> Tensor | None:
                x.append(out[0, at].clone())
                if edits and layer in edits:
                    out = out.clone()
                    out[0, at.start :] = edits[layer](out[0, at.start :])
                    return out
                return None

            def residual(module: nn.Module, args: Any, out: Any) -> None:
                r.append((out[0] if isinstance(out, tuple) else out)[0, at].clone())

            handles += [block.mlp.register_forward_hook(mlp), block.register_forward_hook(residual)]
        try:
            logits = self.model(torch.tensor([ids])).logits[0, at]
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(x), torch.stack(r), logits

    @torch.no_grad()
    def last_mlp(self, text: str) -> Tensor:
        """(L, D) MLP outputs at a text's last token."""
        return self.read(text, "?")[0][:, 0]


def _byte(value: int) -> int:
    """The rank of a byte's symbol in the sorted byte-level alphabet."""
    return _ORDER[value]


def _order() -> dict[int, int]:
    from tokenizers import pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    symbol = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {b: alphabet.index(s) for b, s in symbol.items()}


_ORDER = _order()
