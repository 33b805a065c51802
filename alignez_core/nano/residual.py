"""The residual-stream row of the evaluation, which the product's engines do not offer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignez_core.directions import fit_transport

_BATCH = 100


def residual_answers(
    model_dir: Path,
    layer: int,
    helped: Sequence[str],
    bare: Sequence[str],
    asked: Sequence[str],
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[str]:
    """Answers to `asked` with transport applied to the output of one decoder block, at the last prompt token only.

    Args:
        layer: 0-based decoder block whose output is fitted and edited.
        helped, bare: the fit prompts with and without the persona.
        asked: wrapped queries to answer.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.train(False)
    captured: list[Tensor] = []
    plan: list[tuple[Tensor, Tensor]] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] == 1:  # a generated token: its position is not edited
            return output
        if not plan:
            captured.append(hidden[:, -1].clone())
            return output
        theta, tau = plan[0]
        edited = hidden.clone()
        edited[:, -1] += (tau - hidden[:, -1] @ theta).unsqueeze(-1) * theta
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = model.model.layers[layer].register_forward_hook(hook)
    answers: list[str] = []
    try:
        with torch.no_grad():
            for texts in (helped, bare):
                model(**tokenizer(list(texts), return_tensors="pt", padding=True))
            fitted = fit_transport(captured[0].unsqueeze(1), captured[1].unsqueeze(1))
            plan.append((fitted.theta[0], fitted.tau[0]))
            for start in range(0, len(asked), _BATCH):
                batch = tokenizer(list(asked[start : start + _BATCH]), return_tensors="pt", padding=True)
                out = model.generate(
                    **batch, max_new_tokens=max_tokens, do_sample=True, temperature=temperature, top_k=0, top_p=1.0
                )
                answers += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    finally:
        handle.remove()
    return answers
