"""Attention over slots: one new token per row against that row's own keys, or a causal prefill, whole or in pieces.

Registered as an attention implementation of transformers; no mask function goes with it, so models build no mask of
their own (transformers 5.23, `masking_utils._preprocess_mask_arguments`) and the step's mask is the only one.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

if TYPE_CHECKING:
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from alignez_core.engines.slots.step import Step, current_step
from alignez_core.errors import UnknownArchitecture

NAME = "alignez_slots"
#: Arguments of other attention variants that change the result; a model that passes one is not computed here.
_UNSUPPORTED = ("s_aux", "position_bias", "cache")


class Call(NamedTuple):
    """Arguments of one attention call that decide which keys a token sees.

    Attributes:
        window: tokens that a token sees; None: all before it. masked: it came with a mask of the model's own.
    """

    window: int | None
    masked: bool


_WITNESS: ContextVar[list[Call] | None] = ContextVar("alignez_witness", default=None)


@contextmanager
def witnessed() -> Iterator[list[Call]]:
    """Every call of `slot_attention` inside, in order; this thread's only."""
    calls: list[Call] = []
    token = _WITNESS.set(calls)
    try:
        yield calls
    finally:
        _WITNESS.reset(token)


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output of the current step, as transformers' attention interface wants it.

    Args:
        query: (B, H, T, d). key, value: (B, Hkv, K, d), T = 1 in a decode, K = start + T in a prefill.
    Returns: (B, T, H, d), and no weights.
    Raises: UnknownArchitecture: the model asks for a variant of attention that is not computed here.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise UnknownArchitecture(f"{type(module).__name__} uses attention with {name}, which is not supported")
    if not is_dynamo_compiling() and (calls := _WITNESS.get()) is not None:
        calls.append(Call(sliding_window, attention_mask is not None))
    step = current_step() or _PLAIN
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if step.positions is not None:
        mask = step.decode_mask(sliding_window, query.dtype)
        # The query heads that share a key head are so many queries of it: no key is repeated in memory.
        packed = query.reshape(rows, heads // groups, groups, width)
        out = _attend(packed, key, value, mask, False, scaling, softcap)
        return out.reshape(rows, 1, heads, out.shape[-1]), None
    mask = step.prefill_mask(sliding_window, length, query.dtype, query.device)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = _attend(query, key, value, mask, mask is None and length > 1, scaling, softcap)
    return out.transpose(1, 2), None


_PLAIN = Step()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scaling)
    # Gemma 2 soft-caps the scores before the mask; the fused kernels cannot.
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def install(model: PreTrainedModel) -> None:
    """Makes `model` compute its attention by `slot_attention`; the model is the engine's own from then on."""
    AttentionInterface.register(NAME, slot_attention)
    # Not `set_attn_implementation`: it refuses GPT-Neo, whose attention does not go through the interface.
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = NAME
        if type(module).__name__ == "GPTNeoSelfAttention":
            module._attn = types.MethodType(_gpt_neo_attention, module)  # type: ignore[assignment]


def _gpt_neo_attention(
    module: GPTNeoSelfAttention, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, None]:
    # GPT-Neo: scores unscaled and in float32; "local" layers see a window of the configured size.
    window = module.config.window_size if module.attention_type == "local" else None
    out, _ = slot_attention(
        module,
        query.float(),
        key.float(),
        value.float(),
        None,
        scaling=1.0,
        sliding_window=window,
    )
    return out.transpose(1, 2).to(value.dtype), None
