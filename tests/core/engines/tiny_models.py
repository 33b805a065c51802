"""Tiny random models of every architecture and a byte tokenizer, made here: nothing is downloaded.

Weights are drawn wide, so that greedy tokens vary and no two tokens are nearly tied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.engines.slots.mlp_modules import (
    candidate_paths,
    find_blocks,
    find_mlp_modules,
    mlp_path,
    output_tensor,
    with_output_tensor,
)
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.spec.limits import MAX_RANK

N_LAYERS, HIDDEN, CONTEXT, VOCAB = 3, 32, 128, 264
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}"
    "{% endif %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
)
_WINDOW = 8
_LLAMA = {"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": False}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": _WINDOW, "head_dim": 8},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8, "sliding_window": _WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **_LLAMA,
        "head_dim": 8,
        "sliding_window": _WINDOW,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi": {"intermediate_size": 48, "tie_word_embeddings": False},
    "gpt2": {"n_positions": CONTEXT, "tie_word_embeddings": False},
    "gpt_neo": {
        "num_layers": N_LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": _WINDOW,
        "tie_word_embeddings": False,
    },
    "gpt_neox": {"intermediate_size": 48, "tie_word_embeddings": False},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "tie_word_embeddings": False},
}

_MOE = {
    **_LLAMA,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
}
_GEMMA3 = ARCHITECTURES["gemma3_text"]

#: Architectures that no table lists: found by the names of their modules and proven by the self-check.
UNLISTED: dict[str, dict[str, Any]] = {
    "phi3": {**_LLAMA, "sliding_window": _WINDOW},
    "mixtral": {**_LLAMA, "num_local_experts": 4},
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "qwen3_moe": {**_MOE, "head_dim": 8},
    "olmo2": _LLAMA,
    "olmo3": {**_LLAMA, "sliding_window": _WINDOW, "layer_types": _GEMMA3["layer_types"]},
    "smollm3": {**_LLAMA, "no_rope_layer_interval": 2},
    "granite": {**_LLAMA, "residual_multiplier": 0.3, "attention_multiplier": 0.4, "logits_scaling": 2.0},
    "cohere2": {**_LLAMA, "head_dim": 8, "sliding_window": _WINDOW, "layer_types": _GEMMA3["layer_types"]},
    "glm4": {**_LLAMA, "head_dim": 8},
    "starcoder2": {**_LLAMA, "sliding_window": _WINDOW},
    "stablelm": _LLAMA,
    "gemma3": {},
}


def byte_tokenizer(chat_template: str | None = None, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, ids 3 to 258; <pad> 0, </s> 1, <s> 2."""
    vocab = {"<pad>": 0, "</s>": 1, "<s>": 2}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[symbol] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "</s>", "<s>")])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of one architecture; the same weights for the same seed."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_hidden_layers": N_LAYERS,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    } | {**ARCHITECTURES, **UNLISTED}[kind]
    for alias, names in {
        "gpt2": ("max_position_embeddings",),
        "gpt_neo": ("num_attention_heads", "num_hidden_layers"),
    }.items():
        if kind == alias:
            settings = {key: value for key, value in settings.items() if key not in names}
    config = settings | changes
    if kind == "gemma3":  # a model of images too: its text part has a configuration of its own
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {**config, **_GEMMA3, "model_type": "gemma3_text"}
        config = {"text_config": text, "vision_config": {**vision, "image_size": 28, "patch_size": 14}}
        config |= {"initializer_range": config["text_config"]["initializer_range"], "tie_word_embeddings": False}
        config |= {"image_token_index": VOCAB - 1, "boi_token_index": VOCAB - 2, "eoi_token_index": VOCAB - 3}
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config))
    return model.eval()


def slot_runner(model: PreTrainedModel, kind: str, max_slots: int) -> SlotRunner:
    """A runner over a tiny model of that architecture."""
    path = mlp_path(kind)
    mlps, blocks = (find(model, N_LAYERS, path) for find in (find_mlp_modules, find_blocks))
    return SlotRunner(model, mlps, max_slots, CONTEXT, blocks)


def tiny_engine(kind: str = "llama", seed: int = 0, **settings: Any) -> TransformersEngine:
    """An engine over `tiny_model(kind, seed)` and `byte_tokenizer()`."""
    tokenizer = settings.pop("tokenizer", None) or byte_tokenizer()
    fingerprint = f"{kind}-{seed}"
    return TransformersEngine.from_model(tiny_model(kind, seed), tokenizer, fingerprint, name=kind, **settings)


def prompts(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    """Ragged prompts of byte tokens, 3 to `longest` long."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]


def token_ids(request: GenerationRequest) -> list[int]:
    """The prompt of a request that was made of token ids."""
    assert not isinstance(request.prompt, str)
    return list(request.prompt)


def plan(kind: str, seed: int = 0, strength: float = 2.0, **options: Any) -> EditPlan:
    """A random plan of one method, strong enough to change a tiny model's tokens."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def rows(count: int) -> Tensor:
        return torch.randn(count, HIDDEN, generator=generator)

    if kind == "alignez":
        return EditPlan.alignez([0, 2], rows(2), rows(2), strength, **options)
    if kind == "transport":
        return EditPlan.transport([0, 1, 2], rows(3), torch.randn(3, generator=generator) * 20, strength, **options)
    if kind in ("distill", "strong"):  # the default form, and every layer at the highest rank
        layers, rank = ([0, 2], 4) if kind == "distill" else ([0, 1, 2], MAX_RANK)
        read, write = (torch.stack([rows(rank) for _ in layers]) for _ in range(2))
        offsets = torch.randn(len(layers), rank, generator=generator)
        return EditPlan.low_rank(layers, read / HIDDEN, write * 20, offsets, strength, **options)
    return EditPlan.additive([1], rows(1) * 8, strength, **options)


def reference_generate(
    model: PreTrainedModel, prompt: Sequence[int], edit: EditPlan | None, new_tokens: int
) -> tuple[list[int], Tensor]:
    """Greedy tokens and (T, vocabulary) logits of Hugging Face `generate`, one row, the edit by plain hooks.

    Independent of the engine: it knows `EditPlan.apply` and `covers` only.
    """
    modules = find_mlp_modules(model, model.config.get_text_config().num_hidden_layers, candidate_paths(model)[0])
    handles = [module.register_forward_hook(_reference_hook(edit, i, len(prompt))) for i, module in enumerate(modules)]
    try:
        with torch.no_grad():
            out = cast(Any, model).generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                return_dict_in_generate=True,
                output_logits=True,
            )
    finally:
        for handle in handles:
            handle.remove()
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


def _reference_hook(edit: EditPlan | None, layer: int, prompt_length: int) -> Callable[..., Any]:
    seen = 0

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal seen
        tensor = output_tensor(output)
        rows = tensor.reshape(-1, tensor.shape[-1]).clone()
        for column in range(rows.shape[0]):
            if edit is not None and edit.covers(seen + column, prompt_length):
                rows[column] = edit.apply(rows[column], layer)
        seen += rows.shape[0]
        return with_output_tensor(output, rows.view(tensor.shape))

    return hook
