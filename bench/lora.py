"""An edit plan as a LoRA adapter in PEFT's file format, so that stock multi-LoRA servers can run it.

An edit y = x + (x·Uᵀ)·V of an MLP's output x = W·z is what a LoRA on `down_proj` computes with A = U·W and B = Vᵀ. For
`alignez` at strength 1 that is A = [ĥᵀW ; p̂ᵀW], B = [−ĥ − (p̂·ĥ)p̂ , p̂]. A LoRA has no position rule: it edits every
position, the prompt's too, as `positions="all"` does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from alignez_core.editing import EditPlan


def save_lora(plan: EditPlan, model: Any, directory: Path) -> None:
    """Writes the adapter of a plan without offsets, for a model of Llama's module names."""
    if plan.c.any() or plan.positions != "all":
        raise ValueError("a LoRA adds no offset and edits every position")
    tensors = {}
    for i, layer in enumerate(plan.layers):
        down = model.model.layers[layer].mlp.down_proj.weight.detach()
        prefix = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        a = plan.U[i].to(down.device) @ down.float()
        tensors[f"{prefix}.lora_A.weight"] = a.to("cpu", down.dtype).contiguous()
        tensors[f"{prefix}.lora_B.weight"] = plan.V[i].T.to(down.dtype).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": plan.rank,
        "lora_alpha": plan.rank,  # their quotient scales the adapter
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["down_proj"],
        "layers_to_transform": list(plan.layers),
        "layers_pattern": "layers",
    }
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
