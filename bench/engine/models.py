"""A model with random weights, and edit plans for it, so that speed is measured without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from alignez_core.editing import EditPlan
from alignez_core.methods.distill import default_layers
from alignez_core.spec.limits import Positions

#: Rank of `distill`'s edit and of its strong form.
RANKS = {"distill": 4, "distill, strong form": 8}


def random_llama(directory: Path) -> Any:
    """Saves a Llama of the shipped model's size (8 M parameters), with a tokenizer of one word per id; returns it."""
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=7, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)  # type: ignore[no-untyped-call]
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(config.vocab_size)}, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)  # type: ignore[no-untyped-call]
    return load(directory)


def load(directory: Path) -> Any:
    """The bare model of Hugging Face in float32, without gradients."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).requires_grad_(False)


def greedy(model: Any, prompts: torch.Tensor, new_tokens: int, **arguments: Any) -> torch.Tensor:
    """(B, new_tokens): the tokens that `generate` adds to prompts (B, T) of one length, past any end of sequence."""
    with torch.inference_mode():
        tokens: torch.Tensor = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            **arguments,
        )
    return tokens[:, prompts.shape[1] :]


def random_plans(n_layers: int, width: int, count: int, positions: Positions = "answer") -> list[EditPlan]:
    """Distinct plans of the paper's method (rank 2) in the last five layers, strong enough to change random text."""
    generator = torch.Generator().manual_seed(0)
    layers = range(n_layers - min(5, n_layers), n_layers)
    pairs = torch.randn(count, 2, len(layers), width, generator=generator)
    return [EditPlan.alignez(layers, harm, help_, 4.0, positions=positions) for harm, help_ in pairs]


def low_rank_plans(n_layers: int, width: int, count: int, method: str) -> list[EditPlan]:
    """Distinct plans of the size that `distill` makes: in four layers, or in all of them in its strong form."""
    layers = default_layers(n_layers) if method == "distill" else tuple(range(n_layers))
    shape = (count, 2, len(layers), RANKS[method], width)
    pairs = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / width
    return [EditPlan.low_rank(layers, u, v, torch.zeros(u.shape[:2])) for u, v in pairs]


def save_lora(plan: EditPlan, model: Any, directory: Path) -> None:
    """Writes a plan without offsets as a LoRA adapter in PEFT's file format, for a Llama.

    An edit y = x + (x·Uᵀ)·V of an MLP's output x = W·z is a LoRA on `down_proj` with A = U·W and B = Vᵀ, which edits
    every position, the prompt's too.
    """
    if plan.c.any() or plan.positions != "all":
        raise ValueError("a LoRA adds no offset and edits every position")
    tensors = {}
    for i, layer in enumerate(plan.layers):
        prefix = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{prefix}.lora_A.weight"] = plan.U[i] @ model.model.layers[layer].mlp.down_proj.weight
        tensors[f"{prefix}.lora_B.weight"] = plan.V[i].T.contiguous()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "lora_dropout": 0.0,
        "r": plan.rank, "lora_alpha": plan.rank,  # their quotient scales the adapter
        "target_modules": ["down_proj"], "layers_to_transform": list(plan.layers), "layers_pattern": "layers",
    }  # fmt: skip
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
